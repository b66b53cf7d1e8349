//! A function that does what it is asked to, for tests: the same as `../app.py`, and an answer that is streamed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use lambda_runtime::streaming::{Body, Response, channel};
use lambda_runtime::{Diagnostic, Error, FunctionResponse, LambdaEvent, run, service_fn};
use serde_json::{Map, Value, json};

static INVOCATIONS: AtomicU64 = AtomicU64::new(0);

/// What is wrong, as callers see it.
#[derive(Debug)]
struct AsAsked(&'static str);

impl From<AsAsked> for Diagnostic {
    fn from(error: AsAsked) -> Self {
        Self { error_type: "AsAsked".into(), error_message: error.0.into() }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    println!("loading");
    match std::env::var("FAIL_INIT").as_deref() {
        Ok("exception") => return Err("cannot begin".into()),
        Ok("exit") => std::process::exit(7),
        _ => run(service_fn(handler)).await,
    }
}

async fn handler(event: LambdaEvent<Value>) -> Result<FunctionResponse<Value, Body>, AsAsked> {
    let (event, context) = event.into_parts();
    let invocations = INVOCATIONS.fetch_add(1, Ordering::Relaxed) + 1;
    println!("got {}", event.to_string().chars().take(200).collect::<String>());
    let number = |name: &str| event[name].as_u64().unwrap_or(0);
    let answer = match event["do"].as_str() {
        Some("fail") => return Err(AsAsked("as asked")),
        Some("panic") => panic!("as asked"),
        Some("exit") => std::process::exit(event["code"].as_i64().unwrap_or(3) as i32),
        Some("memory") => {
            let held = vec![1_u8; (number("mb") << 20) as usize];
            json!(held.iter().map(|byte| u64::from(*byte)).sum::<u64>())
        }
        Some("environment") => std::env::vars().map(|(name, value)| (name, json!(value))).collect::<Map<_, _>>().into(),
        Some("write") => {
            let bytes = number("bytes");
            match std::fs::write(event["path"].as_str().unwrap_or(""), vec![b'x'; bytes as usize]) {
                Ok(()) => json!({ "written": bytes }),
                Err(error) => json!({ "error": error.kind().to_string() }),
            }
        }
        Some("large") => "x".repeat(number("bytes") as usize).into(),
        Some("length") => json!(event["text"].as_str().map(str::len)),
        Some("stream") => return Ok(FunctionResponse::StreamingResponse(stream(&event))),
        other => {
            if other == Some("sleep") {
                tokio::time::sleep(Duration::from_secs_f64(event["seconds"].as_f64().unwrap_or(0.0))).await;
            }
            let remaining = context.deadline().duration_since(SystemTime::now()).unwrap_or_default();
            json!({
                "invocations": invocations,
                "event": event,
                "id": context.request_id,
                "arn": context.invoked_function_arn,
                "remaining": remaining.as_millis() as u64,
                "client": context.client_context.as_ref().map(|client| &client.custom),
                "group": context.env_config.log_group,
                "stream": context.env_config.log_stream,
                "memory": context.env_config.memory,
                "name": context.env_config.function_name,
                "version": context.env_config.version,
            })
        }
    };
    Ok(FunctionResponse::BufferedResponse(answer))
}

/// Parts of an answer, each when the one before is out; `fail` after them ends it with an error.
fn stream(event: &Value) -> Response<Body> {
    let (mut to, answer) = channel();
    let number = |name: &str| event[name].as_u64().unwrap_or(0);
    let (parts, bytes, pause) = (number("parts"), number("bytes") as usize, Duration::from_millis(number("pause")));
    let fails = event["fail"].as_bool().unwrap_or(false);
    tokio::spawn(async move {
        for part in 0..parts {
            if to.send_data(format!("{part}:{}\n", "x".repeat(bytes)).into()).await.is_err() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
        if fails {
            to.abort();
        }
    });
    Response::from(answer)
}
