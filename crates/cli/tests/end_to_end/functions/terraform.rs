//! What Terraform's AWS provider and SAM call, in their order and with their conditions, by AWS's client for Python. The provider itself is
//! not run: these are its calls, as its sources have them, and no more than that.

use super::harness::Service;
use crate::stores::only_on_files;
use crate::world::World;

/// How the provider waits and reads.
pub(super) const PROVIDER: &str = r#"
def until(call, done, pending):
    for _ in range(600):
        state = call()
        if state == done:
            return
        assert state in pending, state
        time.sleep(0.1)
    raise AssertionError(state)

def status(name):
    return lambda: client.get_function(FunctionName=name)["Configuration"].get("LastUpdateStatus", "InProgress")

def not_there(call):
    try:
        call()
    except client.exceptions.ResourceNotFoundException:
        return True
    return False

# The resource aws_lambda_function.
def create_function(name, reserved=-1, **more):
    client.create_function(FunctionName=name, Description="", Role=ROLE, PackageType="Image", Code={"ImageUri": IMAGE}, MemorySize=128,
                           Timeout=3, Architectures=["x86_64" if os.uname().machine == "x86_64" else "arm64"],
                           EphemeralStorage={"Size": 512}, TracingConfig={"Mode": "PassThrough"}, Tags={}, **({"Publish": False} | more))
    state = lambda: client.get_function(FunctionName=name)["Configuration"]["State"]
    until(state, "Active", ["Pending"])
    if reserved >= 0:
        client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=reserved)

def read_function(name):
    found = client.get_function(FunctionName=name)
    # Without, it would be taken for one that is not there.
    assert found["Code"]["ImageUri"] and found["Configuration"], found
    marker, versions = {}, []
    while marker is not None:
        page = client.list_versions_by_function(FunctionName=name, MaxItems=10_000, **marker)
        versions += page["Versions"]
        marker = {"Marker": page["NextMarker"]} if "NextMarker" in page else None
    got = found["Configuration"]
    return dict(arn=got["FunctionArn"], description=got["Description"], memory=got["MemorySize"], timeout=got["Timeout"], role=got["Role"],
                architectures=got["Architectures"], storage=got["EphemeralStorage"]["Size"],
                tracing=got.get("TracingConfig", {"Mode": "PassThrough"})["Mode"],
                environment=got.get("Environment", {}).get("Variables"), image=got.get("ImageConfigResponse", {}).get("ImageConfig"),
                uri=found["Code"]["ImageUri"], hash=got["CodeSha256"], modified=got["LastModified"], package=got["PackageType"],
                reserved=found.get("Concurrency", {}).get("ReservedConcurrentExecutions", -1), tags=found.get("Tags", {}),
                version=versions[-1]["Version"], qualified=versions[-1]["FunctionArn"])

def update_function(name, uri=None, tags=None, reserved=None, publish=False, **settings):
    arn = client.get_function(FunctionName=name)["Configuration"]["FunctionArn"]
    if tags is not None:
        old = client.list_tags(Resource=arn)["Tags"]
        if gone := [key for key in old if key not in tags]:
            client.untag_resource(Resource=arn, TagKeys=gone)
        client.tag_resource(Resource=arn, Tags=tags)
    if settings:
        client.update_function_configuration(FunctionName=name, **settings)
        until(status(name), "Successful", ["InProgress"])
    if uri:
        client.update_function_code(FunctionName=name, ImageUri=uri)
        until(status(name), "Successful", ["InProgress"])
    if reserved is not None:
        if reserved >= 0:
            client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=reserved)
        else:
            client.delete_function_concurrency(FunctionName=name)
    if publish:
        published = client.publish_version(FunctionName=name)
        # An ARN that has the qualifier, and the qualifier.
        client.get_waiter("function_updated").wait(FunctionName=published["FunctionArn"], Qualifier=published["Version"],
                                                   WaiterConfig={"Delay": 1})

def delete_function(name):
    client.delete_function(FunctionName=name)
    until(lambda: not_there(lambda: client.get_function(FunctionName=name)), True, [False])
"#;

#[track_caller]
fn provider(text: &str) {
    let world = World::new();
    let service = Service::start(&world, &[]);
    service.script_for("lambda-rust", &world, &format!("{PROVIDER}{text}"));
    service.stop();
    world.assert_nothing_left();
}

#[test]
fn terraforms_calls_for_functions_aliases_and_events() {
    only_on_files!();
    provider(
        r#"
create_function("hello", reserved=5, Environment={"Variables": {"NAME": "1"}})
made = read_function("hello")
assert made["environment"] == {"NAME": "1"} and made["image"] is None and made["reserved"] == 5 and made["tags"] == {}, made
assert (made["memory"], made["timeout"], made["storage"], made["tracing"]) == (128, 3, 512, "PassThrough"), made
assert made["version"] == "$LATEST" and made["qualified"] == made["arn"] + ":$LATEST" and made["description"] == "", made
# Reading again finds nothing that changed: there would be no end of plans.
assert read_function("hello") == made

# Each change alone is that change and no other, but for what says that there was one.
def changed(names, **changes):
    global made
    update_function("hello", **changes)
    found = read_function("hello")
    differ = {name for name in found if found[name] != made[name]} - {"modified"}
    assert differ == set(names), (differ, found)
    made = found
changed(["timeout"], Timeout=20)
changed(["description", "memory"], Description="second", MemorySize=256)
changed(["environment"], Environment={"Variables": {}})
changed(["image"], ImageConfig={"Command": ["handler"], "WorkingDirectory": ""})
changed(["image"], ImageConfig={})
changed([], DeadLetterConfig={"TargetArn": ""}, TracingConfig={"Mode": "PassThrough"}, KMSKeyArn="", Layers=[])
changed([], VpcConfig={"SubnetIds": [], "SecurityGroupIds": []}, FileSystemConfigs=[])
changed(["tags"], tags={"a": "1", "b": "2"})
changed(["tags"], tags={"b": "3"})
changed(["reserved"], reserved=-1)
# The same image again is code of its own.
changed(["hash"], uri=IMAGE)
changed(["version", "qualified"], publish=True)
assert made["version"] == "1" and made["qualified"] == made["arn"] + ":1", made
changed(["storage", "version", "qualified"], EphemeralStorage={"Size": 1024}, publish=True)
assert invoke()["Payload"]["version"] == "$LATEST"

# The resource aws_lambda_alias.
alias = client.create_alias(FunctionName="hello", Name="live", Description="", FunctionVersion="1", RoutingConfig={})
read = lambda: client.get_alias(FunctionName="hello", Name="live")
assert read()["AliasArn"] == alias["AliasArn"] == made["arn"] + ":live" and read()["FunctionVersion"] == "1", read()
client.update_alias(FunctionName="hello", Name="live", Description="", FunctionVersion="2",
                    RoutingConfig={"AdditionalVersionWeights": {"1": 0.5}})
assert read()["FunctionVersion"] == "2" and read()["RoutingConfig"] == {"AdditionalVersionWeights": {"1": 0.5}}, read()
client.update_alias(FunctionName="hello", Name="live", Description="", FunctionVersion="2", RoutingConfig={})
assert not read().get("RoutingConfig", {}).get("AdditionalVersionWeights"), read()

# The resource aws_lambda_function_event_invoke_config, of the function and of the alias.
for qualifier in [{}, {"Qualifier": "live"}]:
    put = lambda **more: client.put_function_event_invoke_config(FunctionName="hello", **qualifier, **more)
    read_config = lambda: client.get_function_event_invoke_config(FunctionName="hello", **qualifier)
    put(MaximumRetryAttempts=0, MaximumEventAgeInSeconds=60, DestinationConfig={"OnFailure": {"Destination": made["arn"]}})
    assert (read_config()["MaximumRetryAttempts"], read_config()["MaximumEventAgeInSeconds"]) == (0, 60), read_config()
    put(MaximumRetryAttempts=1, DestinationConfig={})
    assert read_config()["MaximumRetryAttempts"] == 1, read_config()
    assert not read_config()["DestinationConfig"].get("OnFailure", {}).get("Destination"), read_config()
    client.delete_function_event_invoke_config(FunctionName="hello", **qualifier)
    assert not_there(read_config)

client.delete_alias(FunctionName="hello", Name="live")
assert not_there(read)
delete_function("hello")
assert not_there(lambda: client.list_versions_by_function(FunctionName="hello"))
# Deleting what is not there any more is how a plan that was broken off goes on.
assert not_there(lambda: client.delete_function(FunctionName="hello"))
"#,
    );
}

#[test]
fn what_sam_and_cloudformation_call() {
    only_on_files!();
    provider(
        r#"
# A stack: the function, a version of it for an alias that follows.
client.create_function(FunctionName="stack-hello-AbC1", Role=ROLE, PackageType="Image", Code={"ImageUri": IMAGE}, Timeout=20, MemorySize=128,
                       Architectures=["x86_64" if os.uname().machine == "x86_64" else "arm64"],
                       Tags={"lambda:createdBy": "SAM"}, LoggingConfig={"LogFormat": "Text"})
name = "stack-hello-AbC1"
until(lambda: client.get_function(FunctionName=name)["Configuration"]["State"], "Active", ["Pending"])
until(status(name), "Successful", ["InProgress"])
code = client.get_function(FunctionName=name)["Configuration"]["CodeSha256"]
first = client.publish_version(FunctionName=name, CodeSha256=code)["Version"]
client.create_alias(FunctionName=name, Name="live", FunctionVersion=first)

# `sam sync --code`: new code, and the alias after it.
client.update_function_code(FunctionName=name, ImageUri=IMAGE)
until(status(name), "Successful", ["InProgress"])
client.update_function_configuration(FunctionName=name, Description="second")
until(status(name), "Successful", ["InProgress"])
second = client.publish_version(FunctionName=name)["Version"]
assert second != first
client.update_alias(FunctionName=name, Name="live", FunctionVersion=second)
assert invoke({"a": 1}, name=name, Qualifier="live")["ExecutedVersion"] == second

# The stack is taken down in the other order.
client.delete_alias(FunctionName=name, Name="live")
for version in [first, second]:
    client.delete_function(FunctionName=name, Qualifier=version)
delete_function(name)
"#,
    );
}
