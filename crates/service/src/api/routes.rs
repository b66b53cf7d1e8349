//! Which action a request asks for: every one that AWS has, so that those we do not have can be named.
//!
//! Names, methods and paths are facts of the API, as botocore's model (1.44) has them.

/// Action, method, path with `{}` for what varies, and what the query must have.
const ACTIONS: &[(&str, &str, &str, &str)] = &[
    ("AddLayerVersionPermission", "POST", "/2018-10-31/layers/{}/versions/{}/policy", ""),
    ("AddPermission", "POST", "/2015-03-31/functions/{}/policy", ""),
    ("CheckpointDurableExecution", "POST", "/2025-12-01/durable-executions/{}/checkpoint", ""),
    ("CreateAlias", "POST", "/2015-03-31/functions/{}/aliases", ""),
    ("CreateCapacityProvider", "POST", "/2025-11-30/capacity-providers", ""),
    ("CreateCodeSigningConfig", "POST", "/2020-04-22/code-signing-configs", ""),
    ("CreateEventSourceMapping", "POST", "/2015-03-31/event-source-mappings", ""),
    ("CreateFunction", "POST", "/2015-03-31/functions", ""),
    ("CreateFunctionUrlConfig", "POST", "/2021-10-31/functions/{}/url", ""),
    ("DeleteAlias", "DELETE", "/2015-03-31/functions/{}/aliases/{}", ""),
    ("DeleteCapacityProvider", "DELETE", "/2025-11-30/capacity-providers/{}", ""),
    ("DeleteCodeSigningConfig", "DELETE", "/2020-04-22/code-signing-configs/{}", ""),
    ("DeleteDurableExecution", "DELETE", "/2025-12-01/durable-executions/{}", ""),
    ("DeleteEventSourceMapping", "DELETE", "/2015-03-31/event-source-mappings/{}", ""),
    ("DeleteFunction", "DELETE", "/2015-03-31/functions/{}", ""),
    ("DeleteFunctionCodeSigningConfig", "DELETE", "/2020-06-30/functions/{}/code-signing-config", ""),
    ("DeleteFunctionConcurrency", "DELETE", "/2017-10-31/functions/{}/concurrency", ""),
    ("DeleteFunctionEventInvokeConfig", "DELETE", "/2019-09-25/functions/{}/event-invoke-config", ""),
    ("DeleteFunctionUrlConfig", "DELETE", "/2021-10-31/functions/{}/url", ""),
    ("DeleteLayerVersion", "DELETE", "/2018-10-31/layers/{}/versions/{}", ""),
    ("DeleteProvisionedConcurrencyConfig", "DELETE", "/2019-09-30/functions/{}/provisioned-concurrency", ""),
    ("DeleteResourcePolicy", "DELETE", "/2026-07-09/resource-policy/{}", ""),
    ("GetAccountSettings", "GET", "/2016-08-19/account-settings", ""),
    ("GetAlias", "GET", "/2015-03-31/functions/{}/aliases/{}", ""),
    ("GetCapacityProvider", "GET", "/2025-11-30/capacity-providers/{}", ""),
    ("GetCodeSigningConfig", "GET", "/2020-04-22/code-signing-configs/{}", ""),
    ("GetDurableExecution", "GET", "/2025-12-01/durable-executions/{}", ""),
    ("GetDurableExecutionHistory", "GET", "/2025-12-01/durable-executions/{}/history", ""),
    ("GetDurableExecutionState", "GET", "/2025-12-01/durable-executions/{}/state", ""),
    ("GetEventSourceMapping", "GET", "/2015-03-31/event-source-mappings/{}", ""),
    ("GetFunction", "GET", "/2015-03-31/functions/{}", ""),
    ("GetFunctionCodeSigningConfig", "GET", "/2020-06-30/functions/{}/code-signing-config", ""),
    ("GetFunctionConcurrency", "GET", "/2019-09-30/functions/{}/concurrency", ""),
    ("GetFunctionConfiguration", "GET", "/2015-03-31/functions/{}/configuration", ""),
    ("GetFunctionEventInvokeConfig", "GET", "/2019-09-25/functions/{}/event-invoke-config", ""),
    ("GetFunctionRecursionConfig", "GET", "/2024-08-31/functions/{}/recursion-config", ""),
    ("GetFunctionScalingConfig", "GET", "/2025-11-30/functions/{}/function-scaling-config", ""),
    ("GetFunctionUrlConfig", "GET", "/2021-10-31/functions/{}/url", ""),
    ("GetLayerVersion", "GET", "/2018-10-31/layers/{}/versions/{}", ""),
    ("GetLayerVersionByArn", "GET", "/2018-10-31/layers", "find=LayerVersion"),
    ("GetLayerVersionPolicy", "GET", "/2018-10-31/layers/{}/versions/{}/policy", ""),
    ("GetPolicy", "GET", "/2015-03-31/functions/{}/policy", ""),
    ("GetProvisionedConcurrencyConfig", "GET", "/2019-09-30/functions/{}/provisioned-concurrency", ""),
    ("GetResourcePolicy", "GET", "/2026-07-09/resource-policy/{}", ""),
    ("GetRuntimeManagementConfig", "GET", "/2021-07-20/functions/{}/runtime-management-config", ""),
    ("Invoke", "POST", "/2015-03-31/functions/{}/invocations", ""),
    ("InvokeAsync", "POST", "/2014-11-13/functions/{}/invoke-async", ""),
    ("InvokeWithResponseStream", "POST", "/2021-11-15/functions/{}/response-streaming-invocations", ""),
    ("ListAliases", "GET", "/2015-03-31/functions/{}/aliases", ""),
    ("ListCapacityProviders", "GET", "/2025-11-30/capacity-providers", ""),
    ("ListCodeSigningConfigs", "GET", "/2020-04-22/code-signing-configs", ""),
    ("ListDurableExecutionsByFunction", "GET", "/2025-12-01/functions/{}/durable-executions", ""),
    ("ListEventSourceMappings", "GET", "/2015-03-31/event-source-mappings", ""),
    ("ListFunctionEventInvokeConfigs", "GET", "/2019-09-25/functions/{}/event-invoke-config/list", ""),
    ("ListFunctionUrlConfigs", "GET", "/2021-10-31/functions/{}/urls", ""),
    ("ListFunctionVersionsByCapacityProvider", "GET", "/2025-11-30/capacity-providers/{}/function-versions", ""),
    ("ListFunctions", "GET", "/2015-03-31/functions", ""),
    ("ListFunctionsByCodeSigningConfig", "GET", "/2020-04-22/code-signing-configs/{}/functions", ""),
    ("ListLayerVersions", "GET", "/2018-10-31/layers/{}/versions", ""),
    ("ListLayers", "GET", "/2018-10-31/layers", ""),
    ("ListProvisionedConcurrencyConfigs", "GET", "/2019-09-30/functions/{}/provisioned-concurrency", "List=ALL"),
    ("ListTags", "GET", "/2017-03-31/tags/{}", ""),
    ("ListVersionsByFunction", "GET", "/2015-03-31/functions/{}/versions", ""),
    ("PauseDurableExecution", "POST", "/2025-12-01/durable-executions/{}/pause", ""),
    ("PublishLayerVersion", "POST", "/2018-10-31/layers/{}/versions", ""),
    ("PublishVersion", "POST", "/2015-03-31/functions/{}/versions", ""),
    ("PutFunctionCodeSigningConfig", "PUT", "/2020-06-30/functions/{}/code-signing-config", ""),
    ("PutFunctionConcurrency", "PUT", "/2017-10-31/functions/{}/concurrency", ""),
    ("PutFunctionEventInvokeConfig", "PUT", "/2019-09-25/functions/{}/event-invoke-config", ""),
    ("PutFunctionRecursionConfig", "PUT", "/2024-08-31/functions/{}/recursion-config", ""),
    ("PutFunctionScalingConfig", "PUT", "/2025-11-30/functions/{}/function-scaling-config", ""),
    ("PutProvisionedConcurrencyConfig", "PUT", "/2019-09-30/functions/{}/provisioned-concurrency", ""),
    ("PutResourcePolicy", "PUT", "/2026-07-09/resource-policy/{}", ""),
    ("PutRuntimeManagementConfig", "PUT", "/2021-07-20/functions/{}/runtime-management-config", ""),
    ("RemoveLayerVersionPermission", "DELETE", "/2018-10-31/layers/{}/versions/{}/policy/{}", ""),
    ("RemovePermission", "DELETE", "/2015-03-31/functions/{}/policy/{}", ""),
    ("ResumeDurableExecution", "POST", "/2025-12-01/durable-executions/{}/resume", ""),
    ("SendDurableExecutionCallbackFailure", "POST", "/2025-12-01/durable-execution-callbacks/{}/fail", ""),
    ("SendDurableExecutionCallbackHeartbeat", "POST", "/2025-12-01/durable-execution-callbacks/{}/heartbeat", ""),
    ("SendDurableExecutionCallbackSuccess", "POST", "/2025-12-01/durable-execution-callbacks/{}/succeed", ""),
    ("StopDurableExecution", "POST", "/2025-12-01/durable-executions/{}/stop", ""),
    ("TagResource", "POST", "/2017-03-31/tags/{}", ""),
    ("UntagResource", "DELETE", "/2017-03-31/tags/{}", ""),
    ("UpdateAlias", "PUT", "/2015-03-31/functions/{}/aliases/{}", ""),
    ("UpdateCapacityProvider", "PUT", "/2025-11-30/capacity-providers/{}", ""),
    ("UpdateCodeSigningConfig", "PUT", "/2020-04-22/code-signing-configs/{}", ""),
    ("UpdateEventSourceMapping", "PUT", "/2015-03-31/event-source-mappings/{}", ""),
    ("UpdateFunctionCode", "PUT", "/2015-03-31/functions/{}/code", ""),
    ("UpdateFunctionConfiguration", "PUT", "/2015-03-31/functions/{}/configuration", ""),
    ("UpdateFunctionEventInvokeConfig", "POST", "/2019-09-25/functions/{}/event-invoke-config", ""),
    ("UpdateFunctionUrlConfig", "PUT", "/2021-10-31/functions/{}/url", ""),
];

/// An action, and what its path says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) action: &'static str,
    /// Percent-decoded, in the path's order.
    pub(crate) parameters: Vec<String>,
}

/// Finds the action of a request. `None` where AWS has none.
pub(crate) fn find(method: &str, path: &str, query: &str) -> Option<Route> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let has = |wanted: &str| wanted.is_empty() || query.split('&').any(|pair| pair == wanted);
    // Where two fit, the one that asks for more is meant.
    let fitting = ACTIONS.iter().filter(|(_, of, _, wanted)| *of == method && has(wanted));
    let mut found: Vec<(usize, Route)> = fitting
        .filter_map(|(action, _, template, wanted)| {
            Some((wanted.len(), Route { action, parameters: matches(template, path)? }))
        })
        .collect();
    found.sort_by_key(|(length, _)| *length);
    found.pop().map(|(_, route)| route)
}

fn matches(template: &str, path: &str) -> Option<Vec<String>> {
    let (mut template, mut path) = (template.split('/'), path.split('/'));
    let mut parameters = Vec::new();
    loop {
        match (template.next(), path.next()) {
            (None, None) => return Some(parameters),
            (Some("{}"), Some(value)) if !value.is_empty() => parameters.push(decode(value)?),
            (Some(wanted), Some(value)) if wanted == value => {}
            _ => return None,
        }
    }
}

/// Percent-decodes. `None` for what is no text then.
pub(crate) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first == b'%' {
            let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok())?;
            bytes.push(u8::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))?);
            rest = &rest[2..];
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

/// The values of a query, decoded.
pub(crate) fn query_values(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(&name.replace('+', " "))?, decode(&value.replace('+', " "))?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn action(method: &str, path: &str, query: &str) -> Option<&'static str> {
        find(method, path, query).map(|route| route.action)
    }

    #[test]
    fn actions_by_method_path_and_query() {
        assert_eq!(action("POST", "/2015-03-31/functions", ""), Some("CreateFunction"));
        assert_eq!(action("GET", "/2015-03-31/functions/", "MaxItems=3"), Some("ListFunctions"));
        assert_eq!(action("DELETE", "/2015-03-31/functions/x/policy/sid", ""), Some("RemovePermission"));
        let provisioned = "/2019-09-30/functions/x/provisioned-concurrency";
        assert_eq!(action("GET", provisioned, "Qualifier=1"), Some("GetProvisionedConcurrencyConfig"));
        assert_eq!(action("GET", provisioned, "List=ALL"), Some("ListProvisionedConcurrencyConfigs"));
        assert_eq!(action("GET", "/2018-10-31/layers", "find=LayerVersion&Arn=x"), Some("GetLayerVersionByArn"));
        assert_eq!(action("PATCH", "/2015-03-31/functions", ""), None);
        assert_eq!(action("GET", "/2015-03-31/functions//policy", ""), None);
    }

    #[test]
    fn arns_in_paths_are_decoded() {
        let route = find("GET", "/2015-03-31/functions/arn%3Aaws%3Alambda%3Ax%3A1%3Afunction%3Ah/configuration", "");
        assert_eq!(route.unwrap().parameters, ["arn:aws:lambda:x:1:function:h"]);
        assert_eq!(
            query_values("a=b%20c&d+e=f+g&h"),
            [("a", "b c"), ("d e", "f g"), ("h", "")].map(|(a, b)| (a.into(), b.into()))
        );
        for bad in ["%", "%2", "%zz", "%+1", "%ff"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_path_is_one_of_ours_or_none(method in "[A-Z]{1,7}", path in "\\PC{0,80}", query in "\\PC{0,40}") {
            let _ = find(&method, &path, &query);
            let _ = query_values(&query);
        }
    }
}
