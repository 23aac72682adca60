//! `where` and `orderBy`: which rows, in which order.
//!
//! A condition is a field and an operator, joined by `_`: `nodeID_in`, `name_containsInsensitive`.
//! Conditions of one object all hold, `AND` adds objects that hold too, `OR` ones that may hold instead.

use async_graphql::Value;
use serde_json::Value as Json;

use super::entities::{Entity, Kind, Object};
use crate::index::Key;

/// How deep `AND` and `OR` may be nested.
const DEPTH_MAX: usize = 8;

/// Operators that compare, for fields of all kinds.
pub(super) const OPERATORS: [&str; 3] = ["eq", "not_eq", "isNull"];
/// Operators whose right side is a list.
pub(super) const LIST_OPERATORS: [&str; 2] = ["in", "not_in"];
/// Operators of what has an order.
pub(super) const ORDER_OPERATORS: [&str; 4] = ["gt", "gte", "lt", "lte"];
/// Operators of texts.
pub(super) const TEXT_OPERATORS: [&str; 8] = [
    "contains",
    "not_contains",
    "containsInsensitive",
    "not_containsInsensitive",
    "startsWith",
    "not_startsWith",
    "endsWith",
    "not_endsWith",
];

/// Whether `row` is one that `condition` asks for.
pub(super) fn holds(entity: &Entity, row: &Object, condition: &Value) -> Result<bool, String> {
    object_holds(entity, row, condition, 0)
}

fn object_holds(
    entity: &Entity,
    row: &Object,
    condition: &Value,
    depth: usize,
) -> Result<bool, String> {
    if depth > DEPTH_MAX {
        return Err(format!("conditions are nested deeper than {DEPTH_MAX}"));
    }
    let Value::Object(conditions) = condition else { return Ok(true) };
    let mut all = true;
    let mut any = false;
    for (name, value) in conditions {
        let nested = || match value {
            Value::List(list) => list.as_slice(),
            other => std::slice::from_ref(other),
        };
        match name.as_str() {
            "AND" => {
                for one in nested() {
                    all &= object_holds(entity, row, one, depth + 1)?;
                }
            }
            "OR" => {
                for one in nested() {
                    any |= object_holds(entity, row, one, depth + 1)?;
                }
            }
            name => all &= condition_holds(entity, row, name, value)?,
        }
    }
    // An object of nothing but alternatives asks for one of them.
    let only_or = conditions.keys().all(|name| name == "OR") && !conditions.is_empty();
    Ok(if only_or { any } else { all || any })
}

fn condition_holds(
    entity: &Entity,
    row: &Object,
    name: &str,
    wanted: &Value,
) -> Result<bool, String> {
    let (field, operator) = name.split_once('_').ok_or_else(|| format!("no condition {name}"))?;
    let known = entity.fields.iter().find(|(known, _)| *known == field);
    let kind = known.ok_or_else(|| format!("no field {field}"))?.1;
    let have = key(row.get(field));
    let (negated, operator) = match operator.strip_prefix("not_") {
        Some(rest) => (true, rest),
        None => (false, operator),
    };
    let holds = match (operator, wanted) {
        ("in", Value::List(list)) => {
            list.iter().map(|one| parse(kind, one)).collect::<Result<Vec<_>, _>>()?.contains(&have)
        }
        ("isNull", Value::Boolean(is_null)) => (have == Key::None) == *is_null,
        ("eq", one) => have == parse(kind, one)?,
        (_, one) => compares(operator, &have, &parse(kind, one)?),
    };
    Ok(holds != negated)
}

/// What is null is neither more nor less than anything, and contains nothing.
fn compares(operator: &str, have: &Key, wanted: &Key) -> bool {
    if *have == Key::None {
        return false;
    }
    match (operator, have, wanted) {
        ("gt", ..) => have > wanted,
        ("gte", ..) => have >= wanted,
        ("lt", ..) => have < wanted,
        ("lte", ..) => have <= wanted,
        ("contains", Key::Text(have), Key::Text(part)) => have.contains(part),
        ("containsInsensitive", Key::Text(have), Key::Text(part)) => {
            have.to_lowercase().contains(&part.to_lowercase())
        }
        ("startsWith", Key::Text(have), Key::Text(part)) => have.starts_with(part),
        ("endsWith", Key::Text(have), Key::Text(part)) => have.ends_with(part),
        _ => false,
    }
}

/// What a client wrote, as something that compares with the field of a row.
fn parse(kind: Kind, wanted: &Value) -> Result<Key, String> {
    Ok(match wanted {
        Value::Null => Key::None,
        Value::Boolean(flag) => Key::Number((*flag).into()),
        Value::Number(number) => {
            let whole = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
            Key::Number(whole.ok_or_else(|| format!("{number} is not a whole number"))?)
        }
        Value::String(text) if kind == Kind::BigInt => {
            Key::Number(text.parse().map_err(|_| format!("{text:?} is not a whole number"))?)
        }
        Value::String(text) => Key::Text(text.clone()),
        Value::Enum(name) => Key::Text(name.to_string()),
        other => return Err(format!("{other} can't be compared with")),
    })
}

/// The field of a row, as something with an order.
fn key(value: Option<&Json>) -> Key {
    match value {
        Some(Json::Bool(flag)) => Key::Number((*flag).into()),
        Some(Json::Number(number)) => {
            let signed = number.as_i64().map(i128::from);
            signed.or_else(|| number.as_u64().map(i128::from)).map_or(Key::None, Key::Number)
        }
        Some(Json::String(text)) => Key::Text(text.clone()),
        _ => Key::None,
    }
}

/// `rows` in the order that `orders` name, the first first: `timestamp_DESC`.
pub(super) fn order(rows: &mut [Object], orders: &[String]) {
    for order in orders.iter().rev() {
        if let Some((field, direction)) = order.rsplit_once('_') {
            crate::index::sorted(rows, direction == "DESC", |row| key(row.get(field)));
        }
    }
}
