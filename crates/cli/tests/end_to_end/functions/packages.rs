//! Functions of zip packages over the image of a runtime.

use super::harness::Service;
use crate::world::{World, test_image, tool};

/// Makes archives.
const ZIP: &str = r##"
import hashlib, io, urllib.error, urllib.request, zipfile

def archive(**files):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as to:
        for name, text in files.items():
            entry = zipfile.ZipInfo(name.replace("__", "/"), (2026, 1, 2, 3, 4, 6))
            mode = 0o755 if text.startswith("#!") else 0o600
            if text.startswith("-> "):
                mode, text = 0o120777 , text[3:]
            entry.external_attr = mode << 16
            entry.create_system = 3
            to.writestr(entry, text)
    return made.getvalue()

def sha(package):
    return base64.b64encode(hashlib.sha256(package).digest()).decode()

def package(number):
    code = '''
import os
from lib.text import TEXT
def handler(event, context):
    return {"number": %d, "text": TEXT, "files": sorted(os.listdir("/var/task")), "here": os.getcwd(), "environment": dict(os.environ)}
def other(event, context):
    return "other"
''' % number
    return archive(**{"task.py": code, "lib__text.py": "TEXT = 'ü'", "link.py": "-> task.py"})

def make(name="zipped", code=None, **more):
    settings = dict(FunctionName=name, Role=ROLE, MemorySize=256, Timeout=20, Runtime="python3.12", Handler="task.handler", Code={"ZipFile": code or package(1)}) | more
    made = client.create_function(**settings)
    client.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    return made
"##;

#[test]
fn packages_run_over_the_image_of_their_runtime() {
    let world = World::new();
    let runtimes = ["python3.12", "provided.al2023"].map(|name| format!("{name}={}", test_image("lambda")));
    let options = ["--runtime", &runtimes[0], "--runtime", &runtimes[1]];
    let service = Service::start(&world, &options);
    let text = r##"
first, second = package(1), package(2)
made = make()
assert made["CodeSha256"] == sha(first) and made["CodeSize"] == len(first) and made["PackageType"] == "Zip", made
assert made["Runtime"] == "python3.12" and made["Handler"] == "task.handler" and made["State"] == "Pending", made
answer = invoke(name="zipped")["Payload"]
assert answer["number"] == 1 and answer["text"] == "ü" and answer["files"] == ["lib", "link.py", "task.py"] and answer["here"] == "/var/task", answer
environment = answer["environment"]
assert environment["_HANDLER"] == "task.handler" and environment["AWS_EXECUTION_ENV"] == "AWS_Lambda_python3.12", environment

# The package as it came, for who has the address.
code = client.get_function(FunctionName="zipped")["Code"]
assert code["RepositoryType"] == "S3" and urllib.request.urlopen(code["Location"]).read() == first, code
for bad in [code["Location"][:-1] + ("0" if code["Location"][-1] != "0" else "1"), code["Location"].replace("zipped", "other"), code["Location"].split("&")[0]]:
    try:
        raise AssertionError(urllib.request.urlopen(bad).read())
    except urllib.error.HTTPError as error:
        assert error.code == 403, error
assert client.get_function_code_signing_config(FunctionName="zipped")["FunctionName"] == "zipped"

dry = client.update_function_code(FunctionName="zipped", ZipFile=second, DryRun=True)
assert dry["CodeSha256"] == sha(second) and client.get_function_configuration(FunctionName="zipped")["CodeSha256"] == sha(first), dry
assert client.publish_version(FunctionName="zipped", CodeSha256=sha(first))["Version"] == "1"
updated = client.update_function_code(FunctionName="zipped", ZipFile=second, Publish=True)
assert updated["Version"] == "2" and updated["CodeSha256"] == sha(second), updated
client.get_waiter("function_updated_v2").wait(FunctionName="zipped", WaiterConfig={"Delay": 1})
number = lambda qualifier: invoke(name="zipped", Qualifier=qualifier)["Payload"]["number"]
assert [number("$LATEST"), number("1"), number("2")] == [2, 1, 2]
assert urllib.request.urlopen(client.get_function(FunctionName="zipped", Qualifier="1")["Code"]["Location"]).read() == first
same = client.update_function_code(FunctionName="zipped", ZipFile=second, Publish=True)
assert same["Version"] == "2" and same["State"] == "Active", same
client.get_waiter("function_updated_v2").wait(FunctionName="zipped", WaiterConfig={"Delay": 1})
client.update_function_configuration(FunctionName="zipped", Handler="task.other")
assert invoke(name="zipped")["Payload"] == "other" and number("2") == 2

# A runtime that the package brings.
boot = archive(bootstrap="#!/bin/sh\nexec /usr/bin/python3 -m awslambdaric own.handler\n", **{"own.py": "def handler(event, context): return 'own'"})
make("own", boot, Runtime="provided.al2023", Handler="any")
assert invoke(name="own")["Payload"] == "own"
changed = client.update_function_configuration(FunctionName="zipped", Runtime="provided.al2023")
assert changed["LastUpdateStatus"] == "InProgress" and changed["Runtime"] == "provided.al2023", changed
client.get_waiter("function_updated_v2").wait(FunctionName="zipped", WaiterConfig={"Delay": 1})
assert client.get_function_configuration(FunctionName="zipped")["Runtime"] == "provided.al2023"
# The image of this one may outlive the service that is killed.
client.delete_function(FunctionName="zipped", Qualifier="1")
"##;
    let script = |service: &Service, text: &str| service.script(&world, &format!("{ZIP}{text}"));
    script(&service, text);
    let address = service.address().to_owned();
    service.kill();
    let service = Service::start_at(&world, &address, &options);
    script(
        &service,
        r#"
assert invoke(name="own")["Payload"] == "own" and invoke(name="zipped", Qualifier="2")["Payload"]["number"] == 2
assert urllib.request.urlopen(client.get_function(FunctionName="zipped")["Code"]["Location"]).read() == package(2)
for name in ["zipped", "own"]:
    client.delete_function(FunctionName=name)
"#,
    );
    service.stop();
    world.assert_nothing_left();
    let kept: Vec<_> = std::fs::read_dir(world.path("cache/functions/packages/default")).unwrap().collect();
    assert!(kept.is_empty(), "{kept:?}");
    world.assert_no_images();
}

#[test]
fn packages_that_are_none_are_refused_and_leave_nothing() {
    let world = World::new();
    let runtime = format!("python3.12={}", test_image("lambda"));
    let service = Service::start(&world, &["--runtime", &runtime]);
    let text = r#"
def bad(*words, code="InvalidParameterValueException", **more):
    refused(code, lambda: make(**more), *words)
bad("python3.13 is not configured here, python3.12 are", "--runtime python3.13=IMAGE", Runtime="python3.13")
bad("mandatory parameters", Handler="")
bad("Could not unzip uploaded file", Code={"ZipFile": b"no zip"})
bad("S3", Code={"S3Bucket": "bucket", "S3Key": "key"})
bad("ImageUri", Code={"ImageUri": IMAGE}, PackageType="Zip")
bad("ImageConfig", ImageConfig={"Command": ["x"]})
bad("Layers", Layers=["arn:aws:lambda:us-east-1:000000000000:layer:x:1"])
for name, words in {"..__etc__passwd": "out of the package", "__etc__passwd": "begins with a slash", "x__.wh.app.py": ".wh."}.items():
    bad(words, Code={"ZipFile": archive(**{name: "x"})})
bad("not in the package", Code={"ZipFile": archive(link="-> ../../etc/passwd")})
bad("no folder", Code={"ZipFile": archive(link="-> lib", link__file="x")})
bomb = io.BytesIO()
with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as to:
    to.writestr("zeros", bytes(262_144_001))
bad("Unzipped size must be smaller than 262144000 bytes", Code={"ZipFile": bomb.getvalue()})
bad("52428800", code="RequestTooLargeException", Code={"ZipFile": bytes(52_428_801)})
bad("smaller than", code="RequestTooLargeException", Code={"ZipFile": bytes(53_000_000)})
assert client.list_functions()["Functions"] == []

make()
refused("InvalidParameterValueException", lambda: client.update_function_code(FunctionName="zipped", ImageUri=IMAGE), "ImageUri")
refused("InvalidParameterValueException", lambda: client.update_function_code(FunctionName="zipped", ZipFile=b"no zip"), "unzip")
refused("InvalidParameterValueException", lambda: client.update_function_configuration(FunctionName="zipped", Runtime="ruby3.4"), "ruby3.4 is not configured")
create(name="image")
refused("InvalidParameterValueException", lambda: client.update_function_code(FunctionName="image", ZipFile=package(1)), "ImageUri")
refused("InvalidParameterValueException", lambda: client.update_function_configuration(FunctionName="image", Handler="x"), "Handler")
assert invoke(name="zipped")["Payload"]["number"] == 1 and invoke(name="image")["Payload"]["invocations"] == 1
for name in ["zipped", "image"]:
    client.delete_function(FunctionName=name)
"#;
    service.script(&world, &format!("{ZIP}{text}"));
    service.stop();
    world.assert_nothing_left();
}

#[test]
fn layers_are_put_over_images() {
    let world = World::new();
    std::fs::create_dir_all(world.path("layer/etc")).unwrap();
    std::fs::write(world.path("layer/etc/added"), "by a layer\n").unwrap();
    let archive = world.text("layer.tar.gz");
    tool("tar", &["--create", "--gzip", "--file", &archive, "--directory", &world.text("layer"), "etc"]);
    let published = world.json(&["publish", &test_image("small"), "plain"]);
    let added = world.json(&["publish", &test_image("small"), "added", "--add-layer", &archive]);
    assert_ne!(published["manifest"], added["manifest"]);
    let run = world.snowmelt(["run", "added", "--", "cat", "/etc/added"]).success();
    assert_eq!(run.stdout(), "by a layer\n");
    world.snowmelt(["run", "plain", "--", "test", "-e", "/etc/added"]).failure(1, &[]);
    let nowhere = world.text("nowhere.tar");
    world.snowmelt(["publish", &test_image("small"), "x", "--add-layer", &nowhere]).failure(1, &[&nowhere]);
    let directory = format!("dir:{}", world.text("layer"));
    world.snowmelt(["publish", &directory, "x", "--add-layer", &archive]).failure(1, &["--add-layer", "no layers"]);
    std::fs::write(world.path("no.tar"), "no archive at all, however long it may be").unwrap();
    let bad = world.text("no.tar");
    world.snowmelt(["publish", &test_image("small"), "x", "--add-layer", &bad]).failure(1, &[&bad]);
    world.assert_nothing_left();
}
