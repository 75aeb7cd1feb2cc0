//! Conversations as rows have them.

use plumb_domain::ChatMessage;
use serde_json::Value;

use crate::RowFault;

/// The roles that chat templates know.
pub const ROLES: [&str; 3] = ["system", "user", "assistant"];

/// A message of a role.
pub(crate) fn message(role: &str, content: impl Into<String>) -> ChatMessage {
    ChatMessage { role: role.to_owned(), content: content.into() }
}

/// The messages of a row's field: text (one message of the user's), or a list of objects with
/// `role` and `content`, both text; their other fields are passed over.
///
/// # Errors
/// What is no conversation, with its place in the list.
pub(crate) fn messages(field: &str, value: &Value) -> Result<Vec<ChatMessage>, RowFault> {
    let items = match value {
        Value::String(text) => return Ok(vec![message("user", text)]),
        Value::Array(items) => items,
        _ => {
            return Err(RowFault::new(
                format!("field {field:?} of another type"),
                format!("field {field:?} is {}, expected text or a list of messages", brief(value)),
            ));
        }
    };
    let wrong = |index: usize, item: &Value| {
        RowFault::new(
            format!("field {field:?} with what is no message"),
            format!(
                "field {field:?}, message {index} is {}, expected role (system, user or \
                 assistant) and content, both text",
                brief(item)
            ),
        )
    };
    let read = |(index, item): (usize, &Value)| {
        let part = |key| item.get(key).and_then(Value::as_str);
        match (part("role"), part("content")) {
            (Some(role), Some(content)) if ROLES.contains(&role) => Ok(message(role, content)),
            _ => Err(wrong(index, item)),
        }
    };
    items.iter().enumerate().map(read).collect()
}

/// Checks roles, and that the user has the last word and says something.
pub(crate) fn ends_with_user(messages: &[ChatMessage]) -> Result<(), RowFault> {
    if let Some(other) = messages.iter().find(|m| !ROLES.contains(&m.role.as_str())) {
        return Err(RowFault::new(
            "an unknown role",
            format!("role {:?}; use system, user or assistant", other.role),
        ));
    }
    match messages.last() {
        Some(last) if last.role == "user" && !last.content.trim().is_empty() => Ok(()),
        _ => Err(RowFault::plain("the last message is not a user's with text in it")),
    }
}

/// Turns as messages, the user's first.
pub(crate) fn alternating(turns: impl IntoIterator<Item = impl Into<String>>) -> Vec<ChatMessage> {
    let roles = ["user", "assistant"].into_iter().cycle();
    turns.into_iter().zip(roles).map(|(text, role)| message(role, text)).collect()
}

/// A field that is there and not null.
pub(crate) fn present<'a>(row: &'a Value, field: &str) -> Option<&'a Value> {
    row.get(field).filter(|value| !value.is_null())
}

/// A field that goes by one of two names, and the name.
///
/// # Errors
/// When neither is there, or both are.
pub(crate) fn either<'a>(
    row: &'a Value,
    names: [&'static str; 2],
) -> Result<(&'static str, &'a Value), RowFault> {
    match names.map(|name| present(row, name)) {
        [Some(value), None] => Ok((names[0], value)),
        [None, Some(value)] => Ok((names[1], value)),
        [Some(_), Some(_)] => {
            Err(RowFault::plain(format!("both {} and {}; give one", names[0], names[1])))
        }
        [None, None] => Err(missing(row, names[0])),
    }
}

/// A field of text.
///
/// # Errors
/// When it is missing, null or no text.
pub(crate) fn text<'a>(row: &'a Value, field: &str) -> Result<&'a str, RowFault> {
    let value = present(row, field).ok_or_else(|| missing(row, field))?;
    value.as_str().ok_or_else(|| {
        RowFault::new(
            format!("field {field:?} of another type"),
            format!("field {field:?} is {}, expected text", brief(value)),
        )
    })
}

/// The fault of a row without a field; names the fields it has.
pub(crate) fn missing(row: &Value, field: &str) -> RowFault {
    let problem = match row.as_object() {
        Some(fields) => {
            let has: Vec<&str> = fields.keys().map(String::as_str).collect();
            format!("no field {field:?}; the row has {}", has.join(", "))
        }
        None => format!("the row is {}, expected an object", brief(row)),
    };
    RowFault::new(format!("no field {field:?}"), problem)
}

/// A value as it stands in an error: JSON, cut to 200 characters.
pub(crate) fn brief(value: &Value) -> String {
    value.to_string().chars().take(200).collect()
}
