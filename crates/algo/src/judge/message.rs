//! A message of a dialogue as a judge sees it.

use super::JudgeError;
use crate::json::Json;

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// `user`, `assistant`, `tool`, `system`; empty where there is none.
    pub role: String,
    /// Its text: the content itself, or its parts of type `text`, without the empty ones, line by
    /// line.
    pub text: String,
    /// Its images, in order.
    pub images: Vec<Image>,
}

/// An image in a message.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// What its part holds under `image`.
    pub content: Option<Json>,
    /// What its part holds under `image_url`: told to the judge beside the question.
    pub source: Option<Json>,
}

impl Message {
    /// A message of plain text.
    #[must_use]
    pub fn new(role: &str, text: &str) -> Self {
        Self { role: role.to_owned(), text: text.to_owned(), images: Vec::new() }
    }

    /// Reads `{role, content}`; content is text, null, a number or a list of parts.
    ///
    /// Source: SaFeR-Steer `_normalize_text`, `_collect_judge_images`.
    ///
    /// # Errors
    /// [`JudgeError::Message`] for what is no object, and for a text part whose text is not text.
    pub fn from_json(message: &Json) -> Result<Self, JudgeError> {
        if !message.is_object() {
            return Err(refused("itself", message, "an object with role and content"));
        }
        let role = message.get("role").and_then(Json::as_text).unwrap_or_default().to_owned();
        match message.get("content") {
            None | Some(Json::Null) => Ok(Self { role, text: String::new(), images: Vec::new() }),
            Some(Json::List(parts)) => {
                let images = parts.iter().filter_map(image).collect();
                Ok(Self { role, text: joined(parts)?, images })
            }
            Some(content) => {
                let text = plain_text(content)
                    .ok_or_else(|| refused("content", content, "text or a list of parts"))?;
                Ok(Self { role, text, images: Vec::new() })
            }
        }
    }
}

fn refused(part: &'static str, got: &Json, expected: &'static str) -> JudgeError {
    JudgeError::Message { part, got: got.to_string(), expected }
}

/// A scalar as Python's `str` writes it.
pub(super) fn plain_text(value: &Json) -> Option<String> {
    Some(match value {
        Json::Null => "None".to_owned(),
        Json::Bool(true) => "True".to_owned(),
        Json::Bool(false) => "False".to_owned(),
        Json::Integer(_) => value.to_string(),
        Json::Float(number) if number.is_nan() => "nan".to_owned(),
        Json::Float(number) if number.is_infinite() => number.to_string(),
        Json::Float(_) => value.to_string(),
        Json::Text(text) => text.clone(),
        Json::List(_) | Json::Object(_) => return None,
    })
}

fn is(part: &Json, kind: &str) -> bool {
    part.get("type").and_then(Json::as_text) == Some(kind)
}

fn joined(parts: &[Json]) -> Result<String, JudgeError> {
    let texts = parts.iter().filter(|part| is(part, "text")).filter_map(|part| part.get("text"));
    let lines: Vec<&str> = texts
        .filter(|text| !text.is_falsy())
        .map(|text| text.as_text().ok_or_else(|| refused("text", text, "text")))
        .collect::<Result<_, _>>()?;
    Ok(lines.join("\n"))
}

fn image(part: &Json) -> Option<Image> {
    let source = part.get("image_url").cloned();
    let is_image = is(part, "image") || is(part, "image_url") || source.is_some();
    is_image.then(|| Image { content: part.get("image").cloned(), source })
}

impl Image {
    /// The address under which the judge gets the image: its content if that is a `data:`,
    /// `http:` or `https:` address, or the `image_url` within it. `None` for anything else, a
    /// file's path among it (nothing is read here).
    ///
    /// # Errors
    /// [`JudgeError::Message`] for a part without `image`.
    pub(super) fn url(&self) -> Result<Option<&str>, JudgeError> {
        let Some(content) = &self.content else {
            let got = self.source.clone().unwrap_or(Json::Null);
            return Err(refused("image", &got, "a part with image"));
        };
        let address = match content.get("image_url") {
            Some(nested @ Json::Object(_)) => nested.get("url").and_then(Json::as_text),
            Some(Json::Text(url)) => Some(url.as_str()),
            _ => content.as_text().filter(|text| {
                ["data:", "http://", "https://"].iter().any(|scheme| text.starts_with(scheme))
            }),
        };
        Ok(address.filter(|url| !url.is_empty()))
    }
}
