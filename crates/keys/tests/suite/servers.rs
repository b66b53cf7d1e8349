//! The servers that this was started with.

use serde_json::Value;

/// A variable of `scripts/test-servers`.
pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run through scripts/test-servers run -- COMMAND"))
}

/// Sends JSON and gives the answer's, whatever its status.
pub(crate) fn post(url: &str, headers: &[(&str, &str)], body: &Value) -> Value {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut request = reqwest::Client::builder().no_proxy().build().unwrap().post(url).body(body.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let text = request.send().await.unwrap().text().await.unwrap();
        serde_json::from_str(&text).unwrap_or(Value::Null)
    })
}

/// An address of this machine that nobody listens at.
pub(crate) fn nobody() -> String {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    format!("http://127.0.0.1:{port}")
}
