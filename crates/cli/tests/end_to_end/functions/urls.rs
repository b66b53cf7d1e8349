//! Resource policies, and functions by URLs of their own.

use super::harness::Service;
use crate::stores::only_on_files;
use crate::world::World;

#[test]
fn policies_are_what_aws_makes_of_permissions() {
    only_on_files!();
    let world = World::new();
    let service = Service::start(&world, &[]);
    service.script(
        &world,
        r#"
create(Publish=True)
client.get_waiter("published_version_active").wait(FunctionName="hello", Qualifier="1", WaiterConfig={"Delay": 1})
client.create_alias(FunctionName="hello", Name="live", FunctionVersion="1")
arn = client.get_function_configuration(FunctionName="hello")["FunctionArn"]
add = lambda sid="one", **more: client.add_permission(**(dict(FunctionName="hello", StatementId=sid, Action="lambda:InvokeFunction", Principal="s3.amazonaws.com") | more))

refused("ResourceNotFoundException", lambda: client.get_policy(FunctionName="hello"), "does not exist")
made = json.loads(add(SourceArn="arn:aws:s3:::bucket", SourceAccount="123456789012")["Statement"])
assert made == {"Sid": "one", "Effect": "Allow", "Principal": {"Service": "s3.amazonaws.com"}, "Action": "lambda:InvokeFunction", "Resource": arn,
    "Condition": {"ArnLike": {"AWS:SourceArn": "arn:aws:s3:::bucket"}, "StringEquals": {"AWS:SourceAccount": "123456789012"}}}, made
got = client.get_policy(FunctionName="hello")
policy = json.loads(got["Policy"])
assert policy == {"Version": "2012-10-17", "Id": "default", "Statement": [made]}, policy

refused("ResourceConflictException", lambda: add(), "(one) provided already exists")
refused("PreconditionFailedException", lambda: add("two", RevisionId="other"), "GetPolicy")
add("two", RevisionId=got["RevisionId"], Principal="123456789012", PrincipalOrgID="o-a1b2c3d4e5")
two = json.loads(client.get_policy(FunctionName="hello")["Policy"])["Statement"][1]
assert two["Principal"] == {"AWS": "arn:aws:iam::123456789012:root"} and two["Condition"] == {"StringEquals": {"aws:PrincipalOrgID": "o-a1b2c3d4e5"}}, two
add("url", Action="lambda:InvokeFunctionUrl", Principal="*", FunctionUrlAuthType="NONE")
add("via", Principal="*", InvokedViaFunctionUrl=True)
statements = {s["Sid"]: s for s in json.loads(client.get_policy(FunctionName="hello")["Policy"])["Statement"]}
assert statements["url"]["Condition"] == {"StringEquals": {"lambda:FunctionUrlAuthType": "NONE"}} and statements["url"]["Principal"] == "*", statements
assert statements["via"]["Condition"] == {"Bool": {"lambda:InvokedViaFunctionUrl": "true"}}, statements

invalid = lambda word, **more: refused("InvalidParameterValueException", lambda: add("bad", **more), word)
invalid("Action", Action="s3:GetObject")
invalid("principal", Principal="nobody")
invalid("SourceArn", SourceArn="bucket")
invalid("FunctionUrlAuthType", FunctionUrlAuthType="NONE")
invalid("LATEST", Qualifier="$LATEST")
refused("ResourceNotFoundException", lambda: add("bad", Qualifier="nobody"))
refused("ResourceNotFoundException", lambda: client.add_permission(FunctionName="nobody", StatementId="a", Action="lambda:*", Principal="*"))

# A version and an alias have their own.
add("one", Qualifier="live")
add("one", Qualifier="1")
assert json.loads(client.get_policy(FunctionName="hello", Qualifier="live")["Policy"])["Statement"][0]["Resource"] == arn + ":live"
client.delete_alias(FunctionName="hello", Name="live")
client.create_alias(FunctionName="hello", Name="live", FunctionVersion="1")
refused("ResourceNotFoundException", lambda: client.get_policy(FunctionName="hello", Qualifier="live"))

refused("PreconditionFailedException", lambda: client.remove_permission(FunctionName="hello", StatementId="one", RevisionId="other"))
for sid in ["one", "two", "url", "via"]:
    client.remove_permission(FunctionName="hello", StatementId=sid)
refused("ResourceNotFoundException", lambda: client.remove_permission(FunctionName="hello", StatementId="one"))
refused("ResourceNotFoundException", lambda: client.get_policy(FunctionName="hello"))
"#,
    );
    service.stop();
    world.assert_nothing_left();
}

/// A runtime that answers as the path of the request says, and a client that calls URLs.
const WEB: &str = r#"
import http.client, urllib.parse
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

RUNTIME = '''
import http.client, json, os, time
while True:
    api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    api.request("GET", "/2018-06-01/runtime/invocation/next")
    given = api.getresponse()
    event, id = json.loads(given.read()), given.headers["Lambda-Runtime-Aws-Request-Id"]
    path = event.get("rawPath", "")
    place = "/2018-06-01/runtime/invocation/" + id
    def give(answer):
        api.request("POST", place + "/response", json.dumps(answer), {"content-type": "application/json"})
        api.getresponse().read()
    def stream(parts, kind="application/vnd.awslambda.http-integration-response"):
        api.putrequest("POST", place + "/response")
        api.putheader("Lambda-Runtime-Function-Response-Mode", "streaming")
        api.putheader("Transfer-Encoding", "chunked")
        api.putheader("Content-Type", kind)
        api.endheaders()
        for part in parts:
            if isinstance(part, (int, float)):
                time.sleep(part)
            elif part is None:
                os._exit(1)
            else:
                api.send(b"%x\\r\\n%s\\r\\n" % (len(part), part))
        api.send(b"0\\r\\n\\r\\n")
        api.getresponse().read()
    if path == "/answer":
        give({"statusCode": 201, "headers": {"X-One": "1", "content-type": "text/plain"}, "cookies": ["a=1; Path=/", "b=2"],
              "body": "aGVsbG8=", "isBase64Encoded": True})
    elif path == "/bad":
        give({"statusCode": "no status"})
    elif path == "/text":
        give("text")
    elif path == "/fail":
        api.request("POST", place + "/error", json.dumps({"errorType": "Oops", "errorMessage": "as asked"}), {"content-type": "application/json"})
        api.getresponse().read()
    elif path == "/slow":
        time.sleep(30)
    elif path == "/stream":
        stream([b'{"statusCode": 202, "headers": {"x-st', b'reamed": "yes"}, "cookies": ["c=3"]}' + bytes(3), bytes(5) + b"one", 1, b"two"])
    elif path == "/plain":
        stream([b"{", b"not a head}"], "text/event-stream")
    elif path == "/cut":
        stream([b"{}" + bytes(8) + b"begun", 0.5, None])
    else:
        give(event)
'''
WEB = dict(Timeout=5, ImageConfig={"EntryPoint": ["/usr/bin/python3", "-c"], "Command": [RUNTIME]})
SERVICE = urllib.parse.urlsplit(ENDPOINT)

class Answer:
    pass

def call(url, path="/", method="GET", body=None, headers={}, key=None):
    parts = urllib.parse.urlsplit(url)
    headers = dict(headers)
    if key:
        request = AWSRequest(method, url.rstrip("/") + path, headers=headers, data=body)
        SigV4Auth(Credentials(*key), "lambda", "us-east-1").add_auth(request)
        headers = dict(request.headers.items())
    headers["Host"] = parts.netloc
    connection = http.client.HTTPConnection(SERVICE.hostname, SERVICE.port, timeout=30)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    found = Answer()
    found.status, found.headers, found.raw = answer.status, answer.headers, answer
    return found

def whole(*arguments, **more):
    found = call(*arguments, **more)
    found.body = found.raw.read()
    return found
"#;

#[test]
fn functions_are_called_by_their_urls() {
    only_on_files!();
    let world = World::new();
    let service = Service::start(&world, &[]);
    let text = r#"
create(name="web", **WEB)
made = client.create_function_url_config(FunctionName="web", AuthType="NONE")
url, arn = made["FunctionUrl"], made["FunctionArn"]
id = urllib.parse.urlsplit(url).hostname.split(".")[0]
assert len(id) == 32 and url == f"http://{id}.lambda-url.us-east-1.localhost:{SERVICE.port}/" and made["InvokeMode"] == "BUFFERED", made
refused("ResourceConflictException", lambda: client.create_function_url_config(FunctionName="web", AuthType="NONE"))
assert client.get_function_url_config(FunctionName="web")["FunctionUrl"] == url
assert [c["FunctionUrl"] for c in client.list_function_url_configs(FunctionName="web")["FunctionUrlConfigs"]] == [url]

# Nobody may until the policy says so.
assert whole(url).status == 403 and whole(url.replace(id, "a" * 32)).status == 403
client.add_permission(FunctionName="web", StatementId="all", Action="lambda:InvokeFunctionUrl", Principal="*", FunctionUrlAuthType="NONE")
answer = whole(url, "/a%20b?x=1&x=2&y=%C3%BC", "POST", "hello", {"Content-Type": "text/plain", "Cookie": "k=v; l=w", "X-Own": "own"})
assert answer.status == 200 and answer.headers["content-type"] == "application/json" and answer.headers["x-amzn-requestid"], answer.body
event = json.loads(answer.body)
assert (event["version"], event["rawPath"], event["rawQueryString"], event["body"]) == ("2.0", "/a%20b", "x=1&x=2&y=%C3%BC", "hello"), event
assert event["queryStringParameters"] == {"x": "1,2", "y": "ü"} and event["cookies"] == ["k=v", "l=w"] and event["headers"]["x-own"] == "own", event
context = event["requestContext"]
assert context["domainName"] == urllib.parse.urlsplit(url).hostname and context["domainPrefix"] == id and context["requestId"] == answer.headers["x-amzn-requestid"], context
assert context["http"]["method"] == "POST" and context["http"]["sourceIp"] == "127.0.0.1" and abs(context["timeEpoch"] / 1000 - time.time()) < 60, context
assert json.loads(whole(url, "/", "PUT", b"\xff\x00").body)["isBase64Encoded"] is True

answer = whole(url, "/answer")
assert (answer.status, answer.headers["x-one"], answer.headers["content-type"], answer.body) == (201, "1", "text/plain", b"hello"), answer.body
assert answer.headers.get_all("set-cookie") == ["a=1; Path=/", "b=2"]
assert whole(url, "/text").body == b'"text"'
for path, status in [("/bad", 502), ("/fail", 502), ("/slow", 504), ("/cut", 502)]:
    assert whole(url, path).status == status, path
# A stream, taken together.
answer = whole(url, "/stream")
assert (answer.status, answer.headers["x-streamed"], answer.body) == (202, "yes", b"onetwo"), answer.body
assert whole(url, "/x", "POST", b"x" * (7 << 20)).status == 413
client.put_function_concurrency(FunctionName="web", ReservedConcurrentExecutions=0)
answer = whole(url)
assert answer.status == 429 and b"Rate Exceeded" in answer.body, answer.body
client.delete_function_concurrency(FunctionName="web")

# What pages of other origins may do.
assert "access-control-allow-origin" not in whole(url, "/text", headers={"Origin": "https://a.example"}).headers
for bad in [{"AllowMethods": ["OPTIONS"]}, {"AllowOrigins": ["a.example"]}]:
    refused("InvalidParameterValueException", lambda: client.update_function_url_config(FunctionName="web", Cors=bad), "Cors")
cors = {"AllowOrigins": ["https://a.example"], "AllowMethods": ["POST"], "AllowHeaders": ["x-own"], "MaxAge": 60}
assert client.update_function_url_config(FunctionName="web", Cors=cors)["Cors"] == cors
asking = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
answer = whole(url, "/fail", "OPTIONS", headers=asking)
assert answer.status == 200 and answer.headers["access-control-allow-origin"] == "https://a.example" and answer.headers["access-control-allow-methods"] == "POST", answer.headers
assert whole(url, "/text", headers={"Origin": "https://a.example"}).headers["access-control-allow-origin"] == "https://a.example"
assert "access-control-allow-origin" not in whole(url, "/text", "OPTIONS", headers=asking | {"Origin": "https://b.example"}).headers

# The answer as it comes.
assert client.update_function_url_config(FunctionName="web", InvokeMode="RESPONSE_STREAM")["InvokeMode"] == "RESPONSE_STREAM"
answer = call(url, "/stream")
assert (answer.status, answer.headers["x-streamed"], answer.headers["set-cookie"]) == (202, "yes", "c=3"), answer.headers
assert answer.raw.read(3) == b"one"
began = time.time()
assert answer.raw.read() == b"two" and time.time() - began > 0.5
answer = whole(url, "/plain")
assert (answer.status, answer.headers["content-type"], answer.body) == (200, "application/octet-stream", b"{not a head}"), answer.body
assert whole(url, "/fail").status == 502
try:
    raise AssertionError(whole(url, "/cut").body)
except http.client.IncompleteRead as error:
    assert error.partial == b"begun", error
assert json.loads(whole(url, "/x").body)["rawPath"] == "/x"

# An alias has its own; by a URL's name the API is not there.
client.publish_version(FunctionName="web")
client.create_alias(FunctionName="web", Name="live", FunctionVersion="1")
refused("InvalidParameterValueException", lambda: client.create_function_url_config(FunctionName="web", Qualifier="1", AuthType="NONE"))
live = client.create_function_url_config(FunctionName="web", Qualifier="live", AuthType="NONE")["FunctionUrl"]
assert whole(live).status == 403
client.add_permission(FunctionName="web", StatementId="all", Action="lambda:InvokeFunctionUrl", Principal="*", Qualifier="live")
assert json.loads(whole(live, "/2015-03-31/functions").body)["rawPath"] == "/2015-03-31/functions"
client.delete_alias(FunctionName="web", Name="live")
assert whole(live).status == 403
client.delete_function_url_config(FunctionName="web")
assert whole(url).status == 403
refused("ResourceNotFoundException", lambda: client.get_function_url_config(FunctionName="web"))
"#;
    service.script(&world, &format!("{WEB}{text}"));
    service.stop();
    world.assert_nothing_left();
}

#[test]
fn urls_with_keys_are_called_by_their_tenant_and_outlive_the_service() {
    only_on_files!();
    let world = World::new();
    let keys = world.path("access-keys");
    std::fs::write(&keys, "AKIDONE secret-of-one default\nAKIDTWO secret-of-two other\n").unwrap();
    let options = ["--access-keys", keys.to_str().unwrap(), "--url-domain", "https://functions.example.org"];
    let service = Service::start(&world, &options);
    let prepare = r#"
client = connect("AKIDONE", "secret-of-one")
def check():
    url = client.get_function_url_config(FunctionName="web")["FunctionUrl"]
    assert url.startswith("https://") and url.endswith(".lambda-url.us-east-1.functions.example.org/"), url
    assert whole(url).status == 403
    answer = whole(url, "/a b".replace(" ", "%20") + "?b=2&a=%2F", "POST", b"hello", key=("AKIDONE", "secret-of-one"))
    assert answer.status == 200, answer.body
    event = json.loads(answer.body)
    iam = event["requestContext"]["authorizer"]["iam"]
    assert iam["accessKey"] == "AKIDONE" and iam["userArn"].endswith("/default") and "authorization" not in event["headers"], event
    assert whole(url, key=("AKIDONE", "wrong")).status == 403 and whole(url, key=("AKIDTWO", "secret-of-two")).status == 403
"#;
    let script = |service: &Service, text: &str| service.script(&world, &format!("{WEB}{prepare}{text}"));
    script(
        &service,
        r#"
create(name="web", **WEB)
client.create_function_url_config(FunctionName="web", AuthType="AWS_IAM")
check()
"#,
    );
    let address = service.address().to_owned();
    service.kill();
    let service = Service::start_at(&world, &address, &options);
    script(&service, "check()\nclient.delete_function(FunctionName='web')");
    service.stop();
    world.assert_nothing_left();
}
