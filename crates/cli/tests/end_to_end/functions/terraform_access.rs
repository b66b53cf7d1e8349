//! Terraform's calls for who may invoke a function, over which address, and how many sandboxes are ready; as in `terraform`.

use super::harness::Service;
use super::terraform::PROVIDER;
use crate::stores::only_on_files;
use crate::world::World;

#[test]
fn terraforms_calls_for_permissions_urls_and_provisioned_concurrency() {
    only_on_files!();
    let world = World::new();
    let service = Service::start(&world, &[]);
    service.script_for("lambda-rust", &world, &format!("{PROVIDER}{CALLS}"));
    service.stop();
    world.assert_nothing_left();
}

const CALLS: &str = r#"
# A function that is published as it is made.
create_function("hello", Publish=True)
made = read_function("hello")
assert made["version"] == "1" and made["qualified"] == made["arn"] + ":1", made
update_function("hello", uri=IMAGE, publish=True, Description="second")
assert read_function("hello")["version"] == "2"
client.create_alias(FunctionName="hello", Name="live", FunctionVersion="2")

# The resource aws_lambda_permission, as it reads a statement.
def statement(sid, **qualifier):
    policy = json.loads(client.get_policy(FunctionName="hello", **qualifier)["Policy"])
    return next((each for each in policy["Statement"] if each["Sid"] == sid), None)

def is_gone(sid, **qualifier):
    try:
        return statement(sid, **qualifier) is None
    except client.exceptions.ResourceNotFoundException:
        return True

for qualifier in [{}, {"Qualifier": "live"}]:
    client.add_permission(FunctionName="hello", StatementId="bucket", Action="lambda:InvokeFunction", Principal="s3.amazonaws.com",
                          SourceArn="arn:aws:s3:::bucket", SourceAccount="111111111111", **qualifier)
    found = statement("bucket", **qualifier)
    assert found["Resource"] == made["arn"] + (":live" if qualifier else ""), found
    assert found["Action"] == "lambda:InvokeFunction" and found["Effect"] == "Allow", found
    assert found["Principal"] == {"Service": "s3.amazonaws.com"}, found
    assert found["Condition"] == {"StringEquals": {"AWS:SourceAccount": "111111111111"},
                                  "ArnLike": {"AWS:SourceArn": "arn:aws:s3:::bucket"}}, found
    refused("ResourceConflictException", lambda: client.add_permission(
        FunctionName="hello", StatementId="bucket", Action="lambda:InvokeFunction", Principal="s3.amazonaws.com", **qualifier))
    client.add_permission(FunctionName="hello", StatementId="account", Action="lambda:InvokeFunction", Principal="111111111111", **qualifier)
    assert statement("account", **qualifier)["Principal"]["AWS"].endswith("111111111111" + ":root"), statement("account", **qualifier)
    for sid in ["bucket", "account"]:
        client.remove_permission(FunctionName="hello", StatementId=sid, **qualifier)
        until(lambda: is_gone(sid, **qualifier), True, [False])
    assert not_there(lambda: client.get_policy(FunctionName="hello", **qualifier))
    assert not_there(lambda: client.remove_permission(FunctionName="hello", StatementId="bucket", **qualifier))

# The resource aws_lambda_function_url, which lets everybody in by two permissions.
for qualifier in [{}, {"Qualifier": "live"}]:
    made_url = client.create_function_url_config(FunctionName="hello", AuthType="NONE", InvokeMode="BUFFERED", **qualifier)
    client.add_permission(FunctionName="hello", StatementId="FunctionURLAllowPublicAccess", Action="lambda:InvokeFunctionUrl", Principal="*",
                          FunctionUrlAuthType="NONE", **qualifier)
    client.add_permission(FunctionName="hello", StatementId="FunctionURLInvokeAllowPublicAccess", Action="lambda:InvokeFunction",
                          Principal="*", InvokedViaFunctionUrl=True, **qualifier)
    found = statement("FunctionURLAllowPublicAccess", **qualifier)
    assert found["Principal"] == "*" and found["Condition"]["StringEquals"]["lambda:FunctionUrlAuthType"] == "NONE", found
    found = statement("FunctionURLInvokeAllowPublicAccess", **qualifier)
    assert found["Condition"]["Bool"]["lambda:InvokedViaFunctionUrl"].lower() == "true", found
    read = lambda: client.get_function_url_config(FunctionName="hello", **qualifier)
    assert read()["FunctionUrl"] == made_url["FunctionUrl"] and read()["AuthType"] == "NONE" and "Cors" not in read(), read()
    assert read()["FunctionArn"] == made["arn"] + (":live" if qualifier else ""), read()
    cors = {"AllowCredentials": True, "AllowHeaders": ["date"], "AllowMethods": ["*"], "AllowOrigins": ["*"], "ExposeHeaders": ["date"],
            "MaxAge": 86400}
    client.update_function_url_config(FunctionName="hello", AuthType="AWS_IAM", Cors=cors, InvokeMode="RESPONSE_STREAM", **qualifier)
    assert (read()["AuthType"], read()["Cors"], read()["InvokeMode"]) == ("AWS_IAM", cors, "RESPONSE_STREAM"), read()
    client.update_function_url_config(FunctionName="hello", Cors={}, **qualifier)
    assert not read().get("Cors", {}).get("AllowMethods"), read()
    client.delete_function_url_config(FunctionName="hello", **qualifier)
    assert not_there(read)

# The resource aws_lambda_provisioned_concurrency_config.
name = {"FunctionName": "hello", "Qualifier": "live"}
def provision(count):
    client.put_provisioned_concurrency_config(ProvisionedConcurrentExecutions=count, **name)
    until(lambda: client.get_provisioned_concurrency_config(**name)["Status"], "READY", ["IN_PROGRESS"])
    found = client.get_provisioned_concurrency_config(**name)
    assert (found["AllocatedProvisionedConcurrentExecutions"], found["RequestedProvisionedConcurrentExecutions"]) == (count, count), found
provision(1)
provision(2)
client.delete_provisioned_concurrency_config(**name)
refused("ProvisionedConcurrencyConfigNotFoundException", lambda: client.get_provisioned_concurrency_config(**name))

client.delete_alias(FunctionName="hello", Name="live")
delete_function("hello")
"#;
