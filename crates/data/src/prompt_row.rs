//! Rows of prompts as LightRFT's data sets have them: one user message, images, a reference, a
//! label.

use plumb_domain::template::{TemplateError, fill};
use serde_json::{Value, json};

use crate::reference::normalise_reference;

/// Where a row has what, and what goes around its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowFormat {
    /// Key of the prompt. Default `input`.
    pub prompt_key: String,
    /// Key of the images. Default `images`.
    pub images_key: String,
    /// Key of the reference answer. Default `reference`. `None` looks in the other places only.
    pub reference_key: Option<String>,
    /// Key of the label. Default `label`. `None` gives no label.
    pub label_key: Option<String>,
    /// A system message before the user's. Default none; an empty one is none.
    pub system_prompt: Option<String>,
    /// A text with one gap `{}` that the user's text is put into. Default none; an empty one is
    /// none.
    pub input_template: Option<String>,
}

impl Default for RowFormat {
    fn default() -> Self {
        Self {
            prompt_key: "input".to_owned(),
            images_key: "images".to_owned(),
            reference_key: Some("reference".to_owned()),
            label_key: Some("label".to_owned()),
            system_prompt: None,
            input_template: None,
        }
    }
}

/// A row that no prompt can be made of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// A list without an object whose role is `user`.
    #[error("the conversation has no message of the role user")]
    NoUserMessage,
    /// Something else where a text, a list of messages or a message belongs.
    #[error(
        "the prompt is {0}, expected text, a list of messages, or an object with value or content"
    )]
    NotAConversation(String),
    /// A message or one of its segments has something else where its text belongs.
    #[error("the user's message holds {0} where text belongs")]
    NotText(String),
    /// The input template.
    #[error("the input template: {0}")]
    Template(#[from] TemplateError),
    /// A field that must be there.
    #[error("row {row} has no {key:?}")]
    Missing {
        /// Index of the row within its split.
        row: usize,
        /// The field.
        key: &'static str,
    },
}

/// A row read.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptRow {
    /// The system message.
    pub system: Option<String>,
    /// The user's text, without `<image>`.
    pub user: String,
    /// Does the message begin with an image?
    pub has_images: bool,
    /// The images as the row has them; null without any.
    pub images: Value,
    /// The reference answer ([`normalise_reference`]); null without one.
    pub reference: Value,
    /// The label as the row has it; null without one.
    pub label: Value,
}

impl RowFormat {
    /// Reads a row.
    ///
    /// The prompt is text, a list of messages (the first of the role `user` counts, alone), or an
    /// object with `value`, or with `content`: text, or segments whose texts are joined by a blank.
    /// A list of `{"from", "value"}` entries has no role and is refused. The reference is that of
    /// `reference_key`, else `reward_model.ground_truth`, else `ground_truth`, else
    /// `extra_info.constraints`; the label that of `label_key`, at the top or in `extra_info`.
    ///
    /// Source: LightRFT `prompts_dataset_vl.preprocess_data`.
    ///
    /// # Errors
    /// [`RowError`].
    pub fn read(&self, row: &Value) -> Result<PromptRow, RowError> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let mut user = user_text(row.get(&self.prompt_key).unwrap_or(&Value::Null))?;
        if let Some(template) = given(&self.input_template) {
            let mut gaps = 0;
            user = fill(&template, |gap| {
                gaps += 1;
                (gap == "0" || (gap.is_empty() && gaps == 1)).then_some(user.as_str())
            })?;
        }
        let images = row.get(&self.images_key).cloned().unwrap_or_default();
        Ok(PromptRow {
            system: given(&self.system_prompt),
            user,
            has_images: is_something(&images),
            images,
            reference: self.reference(row),
            label: self.label(row),
        })
    }

    fn reference(&self, row: &Value) -> Value {
        let places = [
            self.reference_key.as_ref().filter(|key| !key.is_empty()).and_then(|key| row.get(key)),
            row.get("reward_model").and_then(|model| model.get("ground_truth")),
            row.get("ground_truth"),
            row.get("extra_info").and_then(|extra| extra.get("constraints")),
        ];
        let found = places.into_iter().flatten().map(normalise_reference);
        found.into_iter().find(|reference| !reference.is_null()).unwrap_or_default()
    }

    fn label(&self, row: &Value) -> Value {
        let Some(key) = &self.label_key else { return Value::Null };
        let top = row.get(key).filter(|label| !label.is_null());
        top.or_else(|| row.get("extra_info")?.get(key)).cloned().unwrap_or_default()
    }
}

impl PromptRow {
    /// The messages with the user's content in segments, an empty image first where there are
    /// images.
    #[must_use]
    pub fn segments(&self) -> Value {
        let text = json!({"type": "text", "text": self.user});
        let image = json!({"type": "image", "image": ""});
        let content = if self.has_images { json!([image, text]) } else { json!([text]) };
        self.messages(content)
    }

    /// The messages with the user's content as text, `<image>` and a blank before it where there
    /// are images.
    #[must_use]
    pub fn plain(&self) -> Value {
        let image = if self.has_images { "<image> " } else { "" };
        self.messages(json!(format!("{image}{}", self.user)))
    }

    fn messages(&self, content: Value) -> Value {
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        system.chain([json!({"role": "user", "content": content})]).collect()
    }
}

fn user_text(conversation: &Value) -> Result<String, RowError> {
    let text = match conversation {
        Value::String(text) => text.clone(),
        Value::Array(messages) => {
            let of_user = |message: &&Value| message.get("role") == Some(&Value::from("user"));
            return user_text(messages.iter().find(of_user).ok_or(RowError::NoUserMessage)?);
        }
        Value::Object(message) => match (message.get("value"), message.get("content")) {
            (Some(Value::String(text)), _) | (None, Some(Value::String(text))) => text.clone(),
            (None, Some(Value::Array(segments))) => joined(segments)?,
            (Some(other), _) => return Err(RowError::NotText(other.to_string())),
            _ => return Err(RowError::NotAConversation(conversation.to_string())),
        },
        _ => return Err(RowError::NotAConversation(conversation.to_string())),
    };
    Ok(text.replace("<image>", ""))
}

/// The texts of segments of the type `text`, a blank between them. One without text counts as
/// empty.
fn joined(segments: &[Value]) -> Result<String, RowError> {
    let mut texts = Vec::new();
    for segment in segments {
        let fields = segment.as_object().ok_or_else(|| RowError::NotText(segment.to_string()))?;
        if fields.get("type") != Some(&Value::from("text")) {
            continue;
        }
        match fields.get("text") {
            None => texts.push(""),
            Some(Value::String(text)) => texts.push(text),
            Some(other) => return Err(RowError::NotText(other.to_string())),
        }
    }
    Ok(texts.join(" "))
}

/// What Python takes for true: neither null, false, 0 nor empty.
fn is_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}
