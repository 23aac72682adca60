//! The chain as GraphQL, with the names and operators of the grid's own server.
//!
//! ```text
//!  query { nodeContracts(where: {twinID_eq: 5, state_in: [Created]}, orderBy: contractID_DESC,
//!                        limit: 10, offset: 0) { contractID nodeID state }
//!          farmsConnection(where: {name_contains: "lab"}) { totalCount } }
//! ```
//!
//! The schema is made at the start from a table of [`entities`], so that every field of every entity has
//! its operators and orders. It can be introspected. A query is bounded in its length, its depth, its
//! fields and its rows.

mod entities;
mod filter;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_graphql::dynamic::{
    Enum, Field, FieldFuture, FieldValue, InputObject, InputValue, Object, ResolverContext, Scalar,
    Schema, SchemaError, TypeRef,
};
use async_graphql::{Request, Value, Variables};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;

use crate::index::Index;
use entities::{CONTRACT_STATES, ENTITIES, Entity, INTERFACES, Kind, Object as Row};

/// Longest request.
const REQUEST_SIZE_MAX: usize = 256 << 10;
/// How deep a query may be; introspection as tools send it has 13 levels.
const DEPTH_MAX: usize = 16;
/// Most fields of a query.
const COMPLEXITY_MAX: usize = 2000;
/// Most rows of one list.
const LIMIT_MAX: u64 = 10_000;
/// Rows of one list, if not asked otherwise.
const LIMIT: u64 = 1000;

/// `/graphql`.
pub(crate) fn router(index: Arc<Index>) -> Result<Router, SchemaError> {
    Ok(Router::new()
        .route("/graphql", post(answer).get(hint))
        .layer(DefaultBodyLimit::max(REQUEST_SIZE_MAX))
        .with_state(schema(index)?))
}

/// What clients send.
#[derive(Deserialize)]
struct Body {
    query: String,
    #[serde(default)]
    variables: Option<serde_json::Value>,
    #[serde(default, rename = "operationName")]
    operation_name: Option<String>,
}

async fn answer(
    State(schema): State<Schema>,
    Json(body): Json<Body>,
) -> Json<async_graphql::Response> {
    let variables = Variables::from_json(body.variables.unwrap_or_default());
    let mut request = Request::new(body.query).variables(variables);
    if let Some(name) = body.operation_name {
        request = request.operation_name(name);
    }
    Json(schema.execute(request).await)
}

async fn hint() -> (StatusCode, &'static str) {
    (StatusCode::METHOD_NOT_ALLOWED, "POST {\"query\": \"{ nodes { nodeID } }\"}\n")
}

fn schema(index: Arc<Index>) -> Result<Schema, SchemaError> {
    let mut query = Object::new("Query");
    let mut schema = Schema::build("Query", None, None)
        .data(index)
        .register(Scalar::new("BigInt").description("A whole number, written as text."))
        .register(Enum::new("ContractState").items(CONTRACT_STATES))
        .register(Object::new("TotalCount").field(total_count()))
        .limit_depth(DEPTH_MAX)
        .limit_complexity(COMPLEXITY_MAX);
    for entity in ENTITIES.iter().chain([&INTERFACES]) {
        schema = schema.register(object(entity));
        let Some(list) = entity.list else { continue };
        schema = schema.register(condition(entity)).register(orders(entity));
        query = query.field(list_field(entity, list)).field(connection_field(entity, list));
    }
    schema.register(query).finish()
}

/// The type of an entity.
fn object(entity: &Entity) -> Object {
    entity.fields.iter().fold(Object::new(entity.name), |object, &(name, kind)| {
        let of = match kind {
            Kind::One(other) => TypeRef::named(other),
            Kind::Many(other) => TypeRef::named_nn_list_nn(other),
            other => TypeRef::named(scalar(other)),
        };
        object.field(Field::new(name, of, move |ctx| {
            FieldFuture::new(async move {
                let row = ctx.parent_value.try_downcast_ref::<Row>()?;
                Ok(field_value(row.get(name), kind))
            })
        }))
    })
}

fn scalar(kind: Kind) -> &'static str {
    match kind {
        Kind::Id => TypeRef::ID,
        Kind::Int => TypeRef::INT,
        Kind::BigInt => "BigInt",
        Kind::Flag => TypeRef::BOOLEAN,
        Kind::State => "ContractState",
        Kind::Text | Kind::One(_) | Kind::Many(_) => TypeRef::STRING,
    }
}

fn field_value(value: Option<&serde_json::Value>, kind: Kind) -> Option<FieldValue<'static>> {
    use serde_json::Value as Json;
    let row = |value: &Json| match value {
        Json::Object(row) => FieldValue::owned_any(row.clone()),
        _ => FieldValue::owned_any(Row::new()),
    };
    match (value?, kind) {
        (Json::Null, _) => None,
        (one @ Json::Object(_), Kind::One(_)) => Some(row(one)),
        (Json::Array(many), Kind::Many(_)) => Some(FieldValue::list(many.iter().map(row))),
        (Json::Number(number), Kind::BigInt) => Some(FieldValue::value(number.to_string())),
        (Json::String(name), Kind::State) => {
            Some(FieldValue::value(Value::Enum(async_graphql::Name::new(name))))
        }
        (other, _) => Value::from_json(other.clone()).ok().map(FieldValue::value),
    }
}

/// `NodeWhereInput`: all fields with all their operators.
fn condition(entity: &Entity) -> InputObject {
    let name = format!("{}WhereInput", entity.name);
    let nested = || TypeRef::named_nn_list(name.clone());
    let mut input = InputObject::new(name.clone())
        .field(InputValue::new("AND", nested()))
        .field(InputValue::new("OR", nested()));
    for &(field, kind) in entity.fields {
        if matches!(kind, Kind::One(_) | Kind::Many(_)) {
            continue;
        }
        let texts: &[&str] = if kind == Kind::Text { &filter::TEXT_OPERATORS } else { &[] };
        let ordered: &[&str] = if kind == Kind::Flag { &[] } else { &filter::ORDER_OPERATORS };
        for operator in filter::OPERATORS.iter().chain(texts).chain(ordered) {
            let of = if *operator == "isNull" { TypeRef::BOOLEAN } else { scalar(kind) };
            input = input.field(InputValue::new(format!("{field}_{operator}"), TypeRef::named(of)));
        }
        for operator in filter::LIST_OPERATORS {
            let of = TypeRef::named_nn_list(scalar(kind));
            input = input.field(InputValue::new(format!("{field}_{operator}"), of));
        }
    }
    input
}

/// `NodeOrderByInput`: all fields, both ways.
fn orders(entity: &Entity) -> Enum {
    let mut orders = Enum::new(format!("{}OrderByInput", entity.name));
    for &(field, kind) in entity.fields {
        if !matches!(kind, Kind::One(_) | Kind::Many(_)) {
            orders = orders.items([format!("{field}_ASC"), format!("{field}_DESC")]);
        }
    }
    orders
}

fn list_field(entity: &'static Entity, list: &'static str) -> Field {
    let of = TypeRef::named_nn_list_nn(entity.name);
    let field = Field::new(list, of, move |ctx| {
        FieldFuture::new(async move {
            let mut rows = matching(entity, &ctx)?;
            filter::order(&mut rows, &order_names(&ctx)?);
            let offset = argument(&ctx, "offset")?.unwrap_or(0);
            let limit = argument(&ctx, "limit")?.unwrap_or(LIMIT);
            if limit > LIMIT_MAX {
                return Err(format!("limit {limit} is more than {LIMIT_MAX}").into());
            }
            let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
            let page = rows.into_iter().skip(count(offset)).take(count(limit));
            Ok(Some(FieldValue::list(page.map(FieldValue::owned_any))))
        })
    });
    arguments(field, entity)
        .argument(InputValue::new("limit", TypeRef::named(TypeRef::INT)))
        .argument(InputValue::new("offset", TypeRef::named(TypeRef::INT)))
}

/// `nodesConnection { totalCount }`.
fn connection_field(entity: &'static Entity, list: &'static str) -> Field {
    let name = format!("{list}Connection");
    let field = Field::new(name, TypeRef::named_nn("TotalCount"), move |ctx| {
        FieldFuture::new(async move {
            let count = matching(entity, &ctx)?.len();
            Ok(Some(FieldValue::owned_any(count)))
        })
    });
    arguments(field, entity)
}

fn total_count() -> Field {
    Field::new("totalCount", TypeRef::named_nn(TypeRef::INT), |ctx| {
        FieldFuture::new(async move {
            let count = ctx.parent_value.try_downcast_ref::<usize>()?;
            Ok(Some(FieldValue::value(i32::try_from(*count).unwrap_or(i32::MAX))))
        })
    })
}

fn arguments(field: Field, entity: &Entity) -> Field {
    let orders = TypeRef::named_nn_list(format!("{}OrderByInput", entity.name));
    let condition = TypeRef::named(format!("{}WhereInput", entity.name));
    field.argument(InputValue::new("where", condition)).argument(InputValue::new("orderBy", orders))
}

fn matching(entity: &Entity, ctx: &ResolverContext<'_>) -> async_graphql::Result<Vec<Row>> {
    let index = ctx.data::<Arc<Index>>()?;
    let mut rows = (entity.rows)(&index.read());
    let Some(condition) = ctx.args.get("where") else { return Ok(rows) };
    let mut error = None;
    rows.retain(|row| {
        filter::holds(entity, row, condition.as_value()).unwrap_or_else(|text| {
            error = Some(text);
            false
        })
    });
    error.map_or(Ok(rows), |text| Err(text.into()))
}

fn order_names(ctx: &ResolverContext<'_>) -> async_graphql::Result<Vec<String>> {
    let Some(orders) = ctx.args.get("orderBy") else { return Ok(Vec::new()) };
    // One order may stand for a list of one.
    Ok(match orders.as_value() {
        Value::List(list) => list.iter().filter_map(order_name).collect(),
        one => order_name(one).into_iter().collect(),
    })
}

fn order_name(value: &Value) -> Option<String> {
    match value {
        Value::Enum(name) => Some(name.to_string()),
        Value::String(name) => Some(name.clone()),
        _ => None,
    }
}

fn argument(ctx: &ResolverContext<'_>, name: &str) -> async_graphql::Result<Option<u64>> {
    match ctx.args.get(name) {
        Some(value) if !value.is_null() => value.u64().map(Some),
        _ => Ok(None),
    }
}
