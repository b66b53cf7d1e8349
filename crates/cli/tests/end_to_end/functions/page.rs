//! The page that `serve` shows to people, in a real browser.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use serde_json::{Value, json};

use super::browser::Browser;
use super::harness::Service;
use crate::stores::only_on_files;
use crate::world::{World, test_image};

const DESKTOP: (u32, u32) = (1280, 1000);

/// The cells of a function's row.
fn row(browser: &Browser, name: &str) -> Value {
    browser.run(
        "const row = [...document.querySelectorAll('#functions tbody tr')].find((row) => row.cells[0].textContent === arguments[0]);
         return row ? [...row.cells].map((cell) => cell.textContent) : null;",
        &json!([name]),
    )
}

fn count(browser: &Browser, selector: &str) -> u64 {
    browser.run("return document.querySelectorAll(arguments[0]).length", &json!([selector])).as_u64().unwrap()
}

#[test]
fn the_page_shows_functions_as_they_are_made_and_run() {
    only_on_files!();
    let world = World::new();
    let service = Service::start(&world, &[]);
    let browser = Browser::start(&world, DESKTOP);
    browser.open(&service.page);
    browser.wait_for("There are none yet");
    browser.wait_for("no cold starts yet");

    // What others wrote is shown as they wrote it, and is nothing else.
    service.script(
        &world,
        r#"
HOSTILE = "<img src=x onerror='window.broken=1'>\"'><script>window.broken=1</script>"
create(Description=HOSTILE)
client.create_function(FunctionName="unfit", Role=ROLE, PackageType="Image", Code={"ImageUri": "oci:/nowhere/<img/src=x/onerror='window.broken=1'><script>window.broken=1</script>:x"})
"#,
    );
    browser.wait_for("hello");
    browser.wait_for("failed");
    service.script(&world, "for _ in range(4):\n    invoke()\n    settle()\ninvoke({'do': 'fail'})\nsettle()");
    browser.wait_for("5 so far");
    browser.wait_for("first byte");
    assert_eq!(
        row(&browser, "hello").as_array().unwrap()[..8],
        ["hello", "active", "5", "1", "1", "4", "0", "1"].map(Value::from)
    );
    assert!(count(&browser, "#warm svg rect") >= 1 && count(&browser, "#cold svg rect") == 1);
    assert_eq!(count(&browser, "#phases svg rect.cold"), 6);
    assert!(count(&browser, "#tiers .bar i") >= 1);
    assert_eq!(count(&browser, "#sandboxes tbody tr"), 1);
    assert!(
        row(&browser, "unfit").as_array().unwrap()[11].as_str().unwrap().contains("<script>window.broken=1</script>")
    );
    let title = browser.run("return document.querySelector('[data-function$=hello]').title", &json!([]));
    assert!(title.as_str().unwrap().starts_with("<img src=x onerror="), "{title}");
    assert_eq!(browser.run("return window.broken ?? null", &json!([])), Value::Null);
    assert_eq!(count(&browser, "main img, main script, main [onerror]"), 0);

    // One function's own times.
    browser.run("document.querySelector('[data-function$=unfit]').click()", &json!([]));
    browser.wait_for("no warm starts yet");
    browser.run("document.getElementById('everything').click()", &json!([]));
    assert!(count(&browser, "#warm svg rect") >= 1);
    assert_eq!(browser.complaints(), Vec::<String>::new());

    for (name, scheme, width) in
        [("light", "light", 1280), ("dark", "dark", 1280), ("phone", "light", 400), ("phone-dark", "dark", 400)]
    {
        browser.emulate(scheme, width);
        // Nothing sticks out on any screen.
        let wide = browser.run("return [document.documentElement.scrollWidth, innerWidth]", &json!([]));
        assert!(wide[0].as_u64() <= wide[1].as_u64(), "{name} {wide}");
        let back = browser.run("return getComputedStyle(document.body).backgroundColor", &json!([]));
        assert_eq!(back == "rgb(18, 22, 28)", scheme == "dark", "{name} {back}");
        browser
            .run("dispatchEvent(new Event('resize')); return new Promise((done) => setTimeout(done, 300))", &json!([]));
        browser.picture(&format!("{name}.png"));
    }
    browser.emulate("light", 1280);

    // It says when the service is gone, and goes on when it is back.
    let address = service.address().to_owned();
    service.kill();
    browser.wait_for("the service does not answer; trying again");
    assert!(browser.text().contains("hello"));
    browser.picture("lost.png");
    let service = Service::start_at(&world, &address, &[]);
    browser.wait_for("\nlive\n");
    browser.stop();
    service.stop();
    world.assert_nothing_left();
}

#[test]
fn with_access_keys_the_page_asks_for_the_token() {
    only_on_files!();
    let world = World::new();
    let keys = world.text("access-keys");
    std::fs::write(&keys, "AKIDONE secret-of-one default\n").unwrap();
    let service = Service::start(&world, &["--access-keys", &keys]);
    let (page, token) = service.page.split_once("#token=").unwrap();
    assert_eq!(token.len(), 32);
    let browser = Browser::start(&world, DESKTOP);
    browser.open(page);
    browser.wait_for("This service asks who you are");
    let give = |token: &str| {
        let script =
            "document.getElementById('token').value = arguments[0]; document.querySelector('#ask button').click()";
        browser.run(script, &json!([token]));
    };
    give("wrong");
    browser.wait_for("That is not the token.");
    browser.picture("asks.png");
    give(token);
    browser.wait_for("all tenants");
    // It is there for as long as the tab.
    browser.run("location.reload()", &json!([]));
    browser.wait_for("all tenants");
    browser.run("sessionStorage.clear()", &json!([]));
    browser.open(page);
    browser.wait_for("This service asks who you are");
    // As `serve` prints it; it does not stay where others see it.
    browser.open("about:blank");
    browser.open(&service.page);
    browser.wait_for("all tenants");
    assert_eq!(browser.run("return location.href", &json!([])), page);
    browser.stop();
    service.stop();
    world.assert_nothing_left();
}

/// A site of somebody else's: an empty page, at another port.
fn other_site() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]);
                let page = "<!doctype html><title>elsewhere</title>elsewhere";
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{page}",
                    page.len()
                );
            });
        }
    });
    address.to_string()
}

/// Everything that a page can try at a service that needs no keys: what it gets to know, or that it is refused.
const TRIES: &str = r#"
const [at] = arguments;
const get = (path, options) => fetch(at + path, options).then((answer) => answer.type === "opaque" ? "opaque" : answer.text(), () => "refused");
const invoke = "/2015-03-31/functions/hello/invocations";
const signed = { Authorization: "AWS4-HMAC-SHA256 Credential=any/20260101/us-east-1/lambda/aws4_request, SignedHeaders=host, Signature=00" };
const frame = (path) => new Promise((done) => {
  const made = document.createElement("iframe");
  made.onload = () => { let seen = "refused"; try { seen = made.contentDocument?.body?.innerText ?? "refused"; } catch {} done(seen); };
  made.src = at + path;
  document.body.append(made);
});
const load = (name, path) => new Promise((done) => {
  const made = document.createElement(name);
  made.onload = () => done("loaded");
  made.onerror = () => done("refused");
  made.src = at + path;
  document.body.append(made);
});
return (async () => ({
  status: await get("/_snowmelt/status"),
  metrics: await get("/metrics"),
  blind: await get("/_snowmelt/status", { mode: "no-cors" }),
  list: await get("/2015-03-31/functions"),
  invoke: await get(invoke, { method: "POST", body: "{}" }),
  invoke_blind: await get(invoke, { method: "POST", body: "{}", mode: "no-cors" }),
  invoke_signed: await get(invoke, { method: "POST", body: "{}", headers: signed }),
  with_token: await get("/_snowmelt/status", { headers: { Authorization: "Bearer x" } }),
  remove: await get("/2015-03-31/functions/hello", { method: "DELETE" }),
  log: await get("/_snowmelt/functions/hello/log"),
  presigned: await get(invoke + "?X-Amz-Algorithm=AWS4-HMAC-SHA256", { method: "POST", body: "{}", mode: "no-cors" }),
  script: await load("script", "/_snowmelt/status"),
  page_script: await load("script", "/_snowmelt/page.js"),
  frame: await frame("/"),
}))();
"#;

#[test]
fn pages_of_other_sites_see_and_do_nothing() {
    only_on_files!();
    let world = World::new();
    let service = Service::start(&world, &[]);
    let made = [
        "fn",
        "--endpoint",
        &service.endpoint,
        "create",
        "hello",
        &test_image("lambda"),
        "--memory",
        "256",
        "--timeout",
        "20",
    ];
    world.snowmelt(made).success();
    let elsewhere = other_site();
    let browser = Browser::start(&world, DESKTOP);
    let port = elsewhere.rsplit_once(':').unwrap().1;
    // By its address the other site is one of the same host, by its name it is not.
    for origin in [format!("http://{elsewhere}/"), format!("http://localhost:{port}/")] {
        browser.open(&origin);
        let seen = browser.run(TRIES, &json!([service.endpoint]));
        for (what, found) in seen.as_object().unwrap() {
            let fits: &[&str] = match what.as_str() {
                // It can ask, and is told nothing: that it was answered at all.
                "blind" | "invoke_blind" | "presigned" => &["opaque", "refused"],
                "frame" => &["refused", ""],
                _ => &["refused"],
            };
            assert!(fits.contains(&found.as_str().unwrap()), "{origin} {what}: {found}");
        }
    }
    let status = world.json(&["top", "--endpoint", &service.endpoint]);
    assert_eq!((&status["functions"][0]["name"], &status["totals"]["invocations"]), (&"hello".into(), &0.into()));
    // The same calls do reach the service from who may make them.
    world.snowmelt(["fn", "--endpoint", &service.endpoint, "invoke", "hello"]).success();
    browser.stop();
    service.stop();
    world.assert_nothing_left();
}
