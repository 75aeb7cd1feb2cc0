//! Chat templates: the Jinja text of an HF folder that turns messages into the model's prompt.

use std::io::Write;
use std::path::Path;

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind, context};
use plumb_domain::ChatMessage;
use serde::Serialize;

use crate::json_file::read_json_if_present;
use crate::tokenizer::{Tokenizer, TokenizerError};

/// Why a chat template could not be read or rendered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatTemplateError {
    /// The folder's files could not be read.
    #[error(transparent)]
    Folder(#[from] TokenizerError),
    /// The template is not valid Jinja.
    #[error("chat template, line {line}: {reason}")]
    Syntax {
        /// Line of the template, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The template failed on these messages, or refused them by `raise_exception`.
    #[error("chat template, line {line}, on {messages} messages: {reason}")]
    Render {
        /// Line of the template, from 1.
        line: usize,
        /// Number of messages rendered.
        messages: usize,
        /// What is wrong, in the template's own words where it raised.
        reason: String,
    },
}

const NAME: &str = "chat_template";

/// A compiled chat template. Follows transformers: `trim_blocks`, `lstrip_blocks`, Python's string
/// methods, `raise_exception`, `strftime_now`, `tojson`, and the variables `messages`,
/// `add_generation_prompt`, `bos_token`, `eos_token`, `pad_token`, `tools`, `documents`.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: Option<String>,
    eos_token: Option<String>,
    pad_token: Option<String>,
}

impl ChatTemplate {
    /// Reads `chat_template.jinja`, else `chat_template` of `tokenizer_config.json` (a string, or a
    /// list of named ones of which `default` is taken). `None` where the folder has neither: a base
    /// model.
    ///
    /// # Errors
    /// [`ChatTemplateError::Folder`] and [`ChatTemplateError::Syntax`].
    pub fn from_folder(
        folder: &Path,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Self>, ChatTemplateError> {
        let Some(source) = template_source(folder)? else { return Ok(None) };
        let mut template = Self::new(source)?;
        template.bos_token = tokenizer.bos_token().map(str::to_owned);
        template.eos_token = tokenizer.eos_token().map(str::to_owned);
        template.pad_token = tokenizer.pad_token().map(str::to_owned);
        Ok(Some(template))
    }

    /// Compiles a template without special tokens.
    ///
    /// # Errors
    /// [`ChatTemplateError::Syntax`].
    pub fn new(source: String) -> Result<Self, ChatTemplateError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        environment.add_template_owned(NAME, source).map_err(|e| ChatTemplateError::Syntax {
            line: e.line().unwrap_or(1),
            reason: reason(&e),
        })?;
        Ok(Self { environment, bos_token: None, eos_token: None, pad_token: None })
    }

    /// Sets the tokens that templates name `bos_token` and `eos_token`.
    #[must_use]
    pub fn with_tokens(mut self, bos: Option<&str>, eos: Option<&str>) -> Self {
        self.bos_token = bos.map(str::to_owned);
        self.eos_token = eos.map(str::to_owned);
        self
    }

    /// Renders messages. With `add_generation_prompt` the text ends where the assistant's answer
    /// begins. Encode the result without adding special tokens: they are in it.
    ///
    /// # Errors
    /// [`ChatTemplateError::Render`], with the template's line.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, ChatTemplateError> {
        let failed = |e: &minijinja::Error| ChatTemplateError::Render {
            line: e.line().unwrap_or(1),
            messages: messages.len(),
            reason: reason(e),
        };
        let template = self.environment.get_template(NAME).map_err(|e| failed(&e))?;
        let token =
            |t: &Option<String>| t.as_ref().map_or(Value::UNDEFINED, |t| Value::from(t.as_str()));
        template
            .render(context! {
                messages => messages,
                add_generation_prompt => add_generation_prompt,
                bos_token => token(&self.bos_token),
                eos_token => token(&self.eos_token),
                pad_token => token(&self.pad_token),
                tools => Value::from(()),
                documents => Value::from(()),
            })
            .map_err(|e| failed(&e))
    }
}

fn template_source(folder: &Path) -> Result<Option<String>, TokenizerError> {
    let path = folder.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(text) => return Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(TokenizerError::Io { path, source }),
    }
    let path = folder.join("tokenizer_config.json");
    let Some(config) = read_json_if_present(&path)? else { return Ok(None) };
    match config.get("chat_template") {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(serde_json::Value::String(text)) => Ok(Some(text.clone())),
        Some(serde_json::Value::Array(named)) => {
            let default = named
                .iter()
                .find(|entry| entry.get("name").and_then(|n| n.as_str()) == Some("default"));
            match default.and_then(|entry| entry.get("template")).and_then(|t| t.as_str()) {
                Some(text) => Ok(Some(text.to_owned())),
                None => Err(TokenizerError::Format {
                    path,
                    reason: "`chat_template` is a list without an entry named \"default\""
                        .to_owned(),
                }),
            }
        }
        Some(other) => Err(TokenizerError::Format {
            path,
            reason: format!(
                "`chat_template` is {other}; expected a string or a list of named templates"
            ),
        }),
    }
}

fn reason(error: &minijinja::Error) -> String {
    error.detail().map_or_else(|| error.kind().to_string(), str::to_owned)
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// The current date in UTC, formatted by the strftime directives that chat templates use.
fn strftime_now(format: String) -> Result<String, minijinja::Error> {
    let parsed = time::format_description::parse_strftime_owned(&format);
    let description = parsed.map_err(|e| {
        minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}"))
    })?;
    time::OffsetDateTime::now_utc().format(&description).map_err(|e| {
        minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}"))
    })
}

/// JSON as Python's `json.dumps` writes it by default: keys in their order, a space after `,` and
/// `:`, no escaping of HTML. `indent` gives the pretty form.
fn tojson(value: Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let mut out = Vec::new();
    match indent {
        Some(width) => {
            let spaces = " ".repeat(width);
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, pretty))
        }
        None => {
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonFormatter))
        }
    }
    .map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(Value::from_safe_string(String::from_utf8_lossy(&out).into_owned()))
}

/// Separators `", "` and `": "`.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
#[path = "chat_template_tests.rs"]
mod tests;
