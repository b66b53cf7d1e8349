//! How many invocations there are at once, by tenant and function: counted as they come and go, so that asking costs the same however many
//! functions there are.
//!
//! What is set aside for a function (its reserved concurrency, or what is provisioned where nothing is reserved) is taken from what all
//! others share, used or not. What a function uses beyond that comes from there too.

use std::collections::HashMap;

use super::Key;
use crate::api::ApiError;

/// What is set aside for a function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Aside {
    /// Its own limit: nobody else has these, and it has no more.
    pub(crate) reserved: Option<u32>,
    /// Sandboxes that are kept for it.
    pub(crate) provisioned: u32,
}

#[derive(Default)]
pub(super) struct Usage(HashMap<String, Tenant>);

#[derive(Default)]
struct Tenant {
    functions: HashMap<String, Function>,
    /// Set aside for all functions together.
    aside: usize,
    /// In use beyond that.
    shared: usize,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Function {
    in_use: usize,
    aside: Aside,
}

impl Function {
    fn aside(self) -> usize {
        self.aside.reserved.unwrap_or(self.aside.provisioned) as usize
    }

    fn shared(self) -> usize {
        self.in_use.saturating_sub(self.aside())
    }
}

impl Usage {
    fn change(&mut self, tenant: &str, function: &str, change: impl FnOnce(&mut Function)) {
        if !self.0.contains_key(tenant) {
            self.0.insert(tenant.to_owned(), Tenant::default());
        }
        let Some(of_tenant) = self.0.get_mut(tenant) else { return };
        let before = of_tenant.functions.get(function).copied().unwrap_or_default();
        let mut after = before;
        change(&mut after);
        of_tenant.aside = of_tenant.aside + after.aside() - before.aside();
        of_tenant.shared = of_tenant.shared + after.shared() - before.shared();
        if after == Function::default() {
            of_tenant.functions.remove(function);
        } else if let Some(entry) = of_tenant.functions.get_mut(function) {
            *entry = after;
        } else {
            of_tenant.functions.insert(function.to_owned(), after);
        }
        if of_tenant.functions.is_empty() {
            self.0.remove(tenant);
        }
    }

    /// One more invocation runs or waits.
    pub(super) fn begin(&mut self, key: &Key) {
        self.change(&key.tenant, &key.function, |function| function.in_use += 1);
    }

    /// One less.
    pub(super) fn end(&mut self, key: &Key) {
        self.change(&key.tenant, &key.function, |function| function.in_use = function.in_use.saturating_sub(1));
    }

    pub(super) fn set_aside(&mut self, tenant: &str, function: &str, aside: Aside) {
        self.change(tenant, function, |function| function.aside = aside);
    }

    /// Whether one more may run, of so many of a tenant, where `leaving` of the function's are not counted.
    ///
    /// # Errors
    /// Throttled, with the reason.
    pub(super) fn check(&self, key: &Key, account: u32, leaving: usize) -> Result<(), ApiError> {
        let Some(tenant) = self.0.get(&key.tenant) else {
            return if account > 0 { Ok(()) } else { Err(ApiError::throttled("ConcurrentInvocationLimitExceeded", 1)) };
        };
        let now = tenant.functions.get(&key.function).copied().unwrap_or_default();
        let function = Function { in_use: now.in_use.saturating_sub(leaving), ..now };
        let shared = tenant.shared + function.shared() - now.shared();
        if function.aside.reserved.is_some_and(|reserved| function.in_use >= reserved as usize) {
            return Err(ApiError::throttled("ReservedFunctionConcurrentInvocationLimitExceeded", 1));
        }
        if function.in_use >= function.aside() && shared + tenant.aside >= account as usize {
            return Err(ApiError::throttled("ConcurrentInvocationLimitExceeded", 1));
        }
        Ok(())
    }

    /// What is in use of those that fit.
    #[cfg(test)]
    pub(super) fn in_use(&self) -> usize {
        let functions = self.0.values().flat_map(|tenant| tenant.functions.values());
        functions.map(|function| function.in_use).sum()
    }
}
