//! Sandboxes that are kept, and what functions have for themselves.

use super::harness::Service;
use crate::world::World;

/// Waits until a version's sandboxes are kept.
const READY: &str = r#"
def ready(qualifier, available, status="READY"):
    for _ in range(300):
        found = client.get_provisioned_concurrency_config(FunctionName="hello", Qualifier=qualifier)
        if found["Status"] == status and found["AvailableProvisionedConcurrentExecutions"] == available:
            return found
        time.sleep(0.1)
    raise AssertionError(found)

def begun(payload={}, **more):
    answer = invoke({"do": "environment"} | payload, **more)["Payload"]
    return answer["AWS_LAMBDA_INITIALIZATION_TYPE"], answer["AWS_LAMBDA_LOG_STREAM_NAME"]
"#;

#[test]
fn sandboxes_are_kept_and_what_is_more_spills_over() {
    let world = World::new();
    let options = ["--idle", "2s", "--concurrency", "300"];
    let service = Service::start(&world, &options);
    let script = |service: &Service, text: &str| service.script(&world, &format!("{READY}{text}"));
    script(
        &service,
        r#"
create(Publish=True)
client.get_waiter("published_version_active").wait(FunctionName="hello", Qualifier="1", WaiterConfig={"Delay": 1})
client.create_alias(FunctionName="hello", Name="live", FunctionVersion="1")
put = lambda qualifier, count: client.put_provisioned_concurrency_config(FunctionName="hello", Qualifier=qualifier, ProvisionedConcurrentExecutions=count)
refused("InvalidParameterValueException", lambda: put("$LATEST", 1), "unpublished")
refused("ResourceNotFoundException", lambda: put("7", 1))
refused("ResourceNotFoundException", lambda: put("nobody", 1), "Cannot find alias")
# A tenth of all is for those that have nothing for themselves.
refused("InvalidParameterValueException", lambda: put("live", 271), "minimum value of [30]")
refused("InvalidParameterValueException", lambda: put("live", 301), "greater than account")
refused("ProvisionedConcurrencyConfigNotFoundException", lambda: client.get_provisioned_concurrency_config(FunctionName="hello", Qualifier="live"))

made = put("live", 2)
assert made["ResponseMetadata"]["HTTPStatusCode"] == 202 and made["Status"] == "IN_PROGRESS" and made["RequestedProvisionedConcurrentExecutions"] == 2, made
refused("ResourceConflictException", lambda: put("1", 1), "alias")
assert ready("live", 2)["AllocatedProvisionedConcurrentExecutions"] == 2
(listed,) = client.list_provisioned_concurrency_configs(FunctionName="hello")["ProvisionedConcurrencyConfigs"]
assert listed["FunctionArn"].endswith(":hello:live") and listed["Status"] == "READY", listed

# Its first invocation finds it started; more than there are get others, which go when they are idle.
assert begun(Qualifier="live")[0] == begun(Qualifier="1")[0] == "provisioned-concurrency"
assert begun()[0] == "on-demand"
found = []
threads = [threading.Thread(target=lambda: found.append(invoke({"do": "sleep", "seconds": 3}, Qualifier="live"))) for _ in range(2)]
[t.start() for t in threads]
time.sleep(1)
assert begun(Qualifier="live")[0] == "on-demand"
[t.join() for t in threads]
assert len(found) == 2
ready("live", 2)
time.sleep(4)
kinds = {begun(Qualifier="live") for _ in range(5)}
assert {kind for kind, _ in kinds} == {"provisioned-concurrency"}, kinds

# One that ends is replaced.
assert invoke({"do": "exit"}, Qualifier="live")["FunctionError"] == "Unhandled"
ready("live", 2)

# What is kept counts among what is set aside.
account = client.get_account_settings()["AccountLimit"]
assert (account["ConcurrentExecutions"], account["UnreservedConcurrentExecutions"]) == (300, 298), account
refused("InvalidParameterValueException", lambda: client.put_function_concurrency(FunctionName="hello", ReservedConcurrentExecutions=1), "[2]")
refused("InvalidParameterValueException", lambda: client.put_function_concurrency(FunctionName="hello", ReservedConcurrentExecutions=271), "[30]")
client.put_function_concurrency(FunctionName="hello", ReservedConcurrentExecutions=2)
refused("InvalidParameterValueException", lambda: put("live", 3), "reservedConcurrentExecution")
client.delete_function_concurrency(FunctionName="hello")
"#,
    );
    let address = service.address().to_owned();
    service.kill();
    let service = Service::start_at(&world, &address, &options);
    script(
        &service,
        r#"
ready("live", 2)
before = {begun(Qualifier="live")[1] for _ in range(5)}
# What an alias points to has them, and what it pointed to before has none.
client.update_function_configuration(FunctionName="hello", Description="two")
assert client.publish_version(FunctionName="hello")["Version"] == "2"
client.update_alias(FunctionName="hello", Name="live", FunctionVersion="2")
ready("live", 2)
kind, stream = begun(Qualifier="live")
assert kind == "provisioned-concurrency" and "[2]" in stream and stream not in before, stream

# One that cannot begin says so.
client.update_function_configuration(FunctionName="hello", Environment={"Variables": {"FAIL_INIT": "exception"}})
client.publish_version(FunctionName="hello")
client.put_provisioned_concurrency_config(FunctionName="hello", Qualifier="3", ProvisionedConcurrentExecutions=1)
assert "cannot begin" in ready("3", 0, "FAILED")["StatusReason"]
client.delete_provisioned_concurrency_config(FunctionName="hello", Qualifier="3")
client.delete_provisioned_concurrency_config(FunctionName="hello", Qualifier="live")
assert client.list_provisioned_concurrency_configs(FunctionName="hello")["ProvisionedConcurrencyConfigs"] == []
for _ in range(100):
    if begun(Qualifier="live")[0] == "on-demand":
        break
    time.sleep(0.1)
else:
    raise AssertionError("a sandbox is kept that nobody wants")
"#,
    );
    service.stop();
    world.assert_nothing_left();
}
