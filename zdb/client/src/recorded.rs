//! Tests with `ci/vectors/zdb.json`: what clients sent to the existing server, and what came back.

use serde_json::Value as Json;
use zdb_resp::request::RequestParser;
use zdb_resp::{ARGUMENT_COUNT_MAX, Limits, write};

use crate::testing::{Action, FakeServer, TIMEOUTS};
use crate::{Client, ClientError, Value};

type Step = (Vec<Vec<u8>>, Value);

/// Each recorded session, played by a server that checks the requests it gets.
#[test]
fn recorded_sessions_are_spoken_and_understood() {
    let mut step_count = 0;
    for steps in sessions().iter().map(plain_steps).filter(|steps| !steps.is_empty()) {
        let script = steps.clone();
        let server = FakeServer::tcp(move || {
            let mut steps = script.clone().into_iter();
            Box::new(move |arguments| {
                let (request, reply) = steps.next().unwrap();
                assert_eq!(arguments, request);
                let mut out = Vec::new();
                write_value(&mut out, &reply);
                Action::Send(out)
            })
        });
        let mut client = Client::connect(&server.endpoint, &TIMEOUTS).unwrap();
        for (request, expected) in steps {
            let arguments: Vec<&[u8]> = request.iter().map(Vec::as_slice).collect();
            match (client.call(&arguments), expected) {
                (Ok(value), expected) => assert_eq!(value, expected),
                (Err(ClientError::Refused { text, .. }), Value::Error(expected)) => {
                    assert_eq!(text.as_bytes(), expected);
                }
                (Err(error), expected) => panic!("{:?}: {error}, not {expected:?}", request[0]),
            }
            step_count += 1;
        }
    }
    assert!(step_count > 400, "only {step_count} steps");
}

/// What is no request gets the recorded text. Bugs and quirks of the existing server are left out.
#[test]
fn recorded_malformed_requests_get_the_recorded_errors() {
    let mut count = 0;
    for session in sessions().iter().filter(|session| session["class"] == "spec") {
        for step in session["steps"].as_array().unwrap() {
            let Some(raw) = step.get("raw").and_then(Json::as_str).and_then(hex) else { continue };
            let Some(expected) = step["replies"].as_array().map(|replies| &replies[0]) else {
                continue;
            };
            let mut parser = RequestParser::new(Limits::default());
            match parser.parse(&raw) {
                Err(error) => assert_eq!(Some(error.to_string().as_str()), expected["v"].as_str()),
                Ok(parsed) => assert!(parsed.is_some() && expected["t"] != "error"),
            }
            count += 1;
        }
    }
    assert!(count >= 4, "only {count}");
}

fn sessions() -> Vec<Json> {
    serde_json::from_str(include_str!("../../../ci/vectors/zdb.json")).unwrap()
}

/// Steps on one connection, up to the first that is no plain request and reply, or after which a
/// server hangs up.
fn plain_steps(session: &Json) -> Vec<Step> {
    let mut steps = Vec::new();
    for step in session["steps"].as_array().unwrap() {
        let Some(step) = plain_step(step) else { break };
        let is_last = step.0.len() > ARGUMENT_COUNT_MAX;
        steps.push(step);
        if is_last {
            break;
        }
    }
    steps
}

fn plain_step(step: &Json) -> Option<Step> {
    if step.get("conn").is_some() {
        return None;
    }
    let request = step.get("send")?.as_array()?.iter().map(argument).collect::<Option<_>>()?;
    Some((request, value(step.get("reply")?)?))
}

fn argument(argument: &Json) -> Option<Vec<u8>> {
    if let Some(text) = argument.as_str() {
        return Some(latin1(text));
    }
    if let Some(fill) = argument.get("fill") {
        let count = usize::try_from(fill[1].as_u64()?).ok()?;
        return Some(fill[0].as_str()?.repeat(count).into_bytes());
    }
    argument.get("hex").and_then(Json::as_str).and_then(hex)
}

fn value(reply: &Json) -> Option<Value> {
    let text = || reply.get("v").and_then(Json::as_str).map(latin1);
    Some(match reply.get("t")?.as_str()? {
        "simple" => Value::Simple(text()?),
        "error" => Value::Error(text()?),
        "int" => Value::Integer(reply.get("v")?.as_i64()?),
        "nil" => Value::Nil,
        "len" => Value::Bulk(vec![0xc5; usize::try_from(reply.get("v")?.as_u64()?).ok()?]),
        "bulk" => match reply.get("hex") {
            Some(digits) => Value::Bulk(hex(digits.as_str()?)?),
            None => Value::Bulk(text()?),
        },
        "array" => {
            let elements = reply.get("v")?.as_array()?;
            Value::Array(elements.iter().map(value).collect::<Option<_>>()?)
        }
        _ => return None,
    })
}

fn write_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Simple(text) => write::simple(out, text),
        Value::Error(text) => write::error(out, text),
        Value::Integer(number) => write::integer(out, *number),
        Value::Bulk(bytes) => write::bulk(out, bytes),
        Value::Nil => write::nil(out),
        Value::Array(elements) => {
            write::array(out, elements.len());
            elements.iter().for_each(|element| write_value(out, element));
        }
    }
}

fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    let pair = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    (0..digits.len()).step_by(2).map(pair).collect()
}
