//! Reading replies. Scripts answer with a word first, then values; a shape we do not know is an error, never a panic.

use redis::Value;

use super::error::StoreError;
use crate::{envelope::Fields, id::StreamId};

/// One entry of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub id: StreamId,
    /// Its fields; `None` for a pending entry that somebody deleted.
    pub fields: Option<Fields>,
}

pub(crate) fn unexpected(what: &'static str, value: &Value) -> StoreError {
    let mut detail = format!("{value:?}");
    detail.truncate(detail.floor_char_boundary(200));
    StoreError::Unexpected { what, detail }
}

pub(crate) fn array(what: &'static str, value: Value) -> Result<Vec<Value>, StoreError> {
    match value {
        Value::Array(items) | Value::Set(items) => Ok(items),
        Value::Map(pairs) => Ok(pairs.into_iter().flat_map(|(k, v)| [k, v]).collect()),
        Value::Nil => Ok(Vec::new()),
        other => Err(unexpected(what, &other)),
    }
}

pub(crate) fn bytes(what: &'static str, value: Value) -> Result<Vec<u8>, StoreError> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        Value::SimpleString(text) => Ok(text.into_bytes()),
        Value::Okay => Ok(b"OK".to_vec()),
        Value::Int(n) => Ok(n.to_string().into_bytes()),
        Value::Nil => Ok(Vec::new()),
        other => Err(unexpected(what, &other)),
    }
}

pub(crate) fn text(what: &'static str, value: Value) -> Result<String, StoreError> {
    Ok(String::from_utf8_lossy(&bytes(what, value)?).into_owned())
}

pub(crate) fn number(what: &'static str, value: &Value) -> Result<i64, StoreError> {
    match value {
        Value::Int(n) => Ok(*n),
        Value::BulkString(bytes) => std::str::from_utf8(bytes)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| unexpected(what, value)),
        Value::Nil => Ok(0),
        other => Err(unexpected(what, other)),
    }
}

pub(crate) fn count(what: &'static str, value: &Value) -> Result<u64, StoreError> {
    Ok(u64::try_from(number(what, value)?).unwrap_or(0))
}

/// `TIME` -> microseconds since 1970.
pub(crate) fn time_us(value: Value) -> Result<u64, StoreError> {
    let parts = array("TIME", value)?;
    match parts.as_slice() {
        [seconds, micros] => Ok(count("TIME", seconds)? * 1_000_000 + count("TIME", micros)?),
        _ => Err(unexpected("TIME", &Value::Array(parts))),
    }
}

/// A flat list of names and values.
pub(crate) fn fields(what: &'static str, value: Value) -> Result<Fields, StoreError> {
    let items = array(what, value)?;
    let mut out = Vec::with_capacity(items.len() / 2);
    let mut items = items.into_iter();
    while let (Some(name), Some(value)) = (items.next(), items.next()) {
        out.push((bytes(what, name)?, bytes(what, value)?));
    }
    Ok(out)
}

/// `[[id, [field, value, …]], …]`, taking the buffers over instead of copying them.
pub(crate) fn entries(what: &'static str, value: Value) -> Result<Vec<Entry>, StoreError> {
    let items = array(what, value)?;
    let mut out = Vec::with_capacity(items.len());
    for item in items {
        let Value::Array(pair) = item else {
            return Err(unexpected(what, &item));
        };
        let mut pair = pair.into_iter();
        let (Some(id), Some(body)) = (pair.next(), pair.next()) else {
            return Err(unexpected(what, &Value::Nil));
        };
        let Value::BulkString(id_bytes) = &id else {
            return Err(unexpected(what, &id));
        };
        let id = StreamId::parse(id_bytes).ok_or_else(|| unexpected(what, &id))?;
        let fields = match body {
            Value::Nil => None,
            body => Some(fields(what, body)?),
        };
        out.push(Entry { id, fields });
    }
    Ok(out)
}

/// What a script answered: its first word, and the rest.
pub(crate) fn verdict(what: &'static str, value: Value) -> Result<(String, std::vec::IntoIter<Value>), StoreError> {
    let mut items = array(what, value)?.into_iter();
    let word = items.next().ok_or_else(|| unexpected(what, &Value::Nil))?;
    Ok((text(what, word)?, items))
}

/// The value of a named field.
#[must_use]
pub fn field<'a>(fields: &'a Fields, name: &str) -> Option<&'a [u8]> {
    fields
        .iter()
        .find(|(k, _)| k == name.as_bytes())
        .map(|(_, v)| v.as_slice())
}

/// The value of a named field as text.
#[must_use]
pub fn field_text(fields: &Fields, name: &str) -> String {
    field(fields, name).map_or_else(String::new, |v| String::from_utf8_lossy(v).into_owned())
}

/// The value of a named field as a number; 0 when it is missing or none.
#[must_use]
pub fn field_number(fields: &Fields, name: &str) -> u64 {
    field(fields, name)
        .and_then(|v| std::str::from_utf8(v).ok()?.parse().ok())
        .unwrap_or(0)
}
