//! The functions there are: in memory, and in a database that survives whatever happens to this process.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use crate::api::ApiError;
use crate::model::Function;

/// Tenant and name, with a byte between them that is in neither.
const FUNCTIONS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("functions");

/// All functions of all tenants.
pub(crate) struct Registry {
    database: Database,
    functions: Mutex<BTreeMap<(String, String), Arc<Function>>>,
}

fn key(tenant: &str, name: &str) -> String {
    format!("{tenant}\0{name}")
}

fn broken(error: impl std::fmt::Display) -> ApiError {
    tracing::error!(%error, "the functions' database");
    ApiError::service("what is known of functions cannot be read or written: the service's log says why")
}

impl Registry {
    /// Opens the database, or makes it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn open(path: &Path) -> Result<Self, redb::Error> {
        let database = Database::create(path)?;
        let begun = database.begin_write()?;
        begun.open_table(FUNCTIONS)?;
        begun.commit()?;
        let mut functions = BTreeMap::new();
        let read = database.begin_read()?;
        for entry in read.open_table(FUNCTIONS)?.iter()? {
            let (key, value) = entry?;
            match serde_json::from_slice::<Function>(value.value()) {
                Ok(function) => {
                    functions.insert((function.tenant.clone(), function.name.clone()), Arc::new(function));
                }
                Err(error) => tracing::error!(%error, function = key.value().replace('\0', "/"), "is not understood"),
            }
        }
        Ok(Self { database, functions: Mutex::new(functions) })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), Arc<Function>>> {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A tenant's function.
    pub(crate) fn find(&self, tenant: &str, name: &str) -> Option<Arc<Function>> {
        self.lock().get(&(tenant.to_owned(), name.to_owned())).cloned()
    }

    /// A tenant's functions, by name.
    pub(crate) fn list(&self, tenant: &str) -> Vec<Arc<Function>> {
        self.lock().values().filter(|function| function.tenant == tenant).cloned().collect()
    }

    /// Everybody's.
    pub(crate) fn all(&self) -> Vec<Arc<Function>> {
        self.lock().values().cloned().collect()
    }

    /// Makes a function.
    ///
    /// # Errors
    /// Conflict where there is one of that name.
    pub(crate) fn create(&self, function: Function) -> Result<Arc<Function>, ApiError> {
        let mut functions = self.lock();
        let place = (function.tenant.clone(), function.name.clone());
        if functions.contains_key(&place) {
            return Err(ApiError::conflict(format!("Function already exist: {}", function.name)));
        }
        let function = Arc::new(function);
        self.write(&function)?;
        functions.insert(place, Arc::clone(&function));
        Ok(function)
    }

    /// Changes a function: all of what `change` does, or nothing.
    ///
    /// # Errors
    /// Not found, and those of `change`.
    pub(crate) fn change<T>(
        &self,
        tenant: &str,
        name: &str,
        change: impl FnOnce(&mut Function) -> Result<T, ApiError>,
    ) -> Result<(Arc<Function>, T), ApiError> {
        let mut functions = self.lock();
        let entry = functions.get_mut(&(tenant.to_owned(), name.to_owned()));
        let entry = entry.ok_or_else(|| ApiError::not_found(format!("Function not found: {name}")))?;
        let mut function = Function::clone(entry);
        let result = change(&mut function)?;
        self.write(&function)?;
        *entry = Arc::new(function);
        Ok((Arc::clone(entry), result))
    }

    /// Removes a function.
    ///
    /// # Errors
    /// Not found.
    pub(crate) fn remove(&self, tenant: &str, name: &str) -> Result<Arc<Function>, ApiError> {
        let mut functions = self.lock();
        let place = (tenant.to_owned(), name.to_owned());
        if !functions.contains_key(&place) {
            return Err(ApiError::not_found(format!("Function not found: {name}")));
        }
        let begun = self.database.begin_write().map_err(broken)?;
        begun.open_table(FUNCTIONS).map_err(broken)?.remove(key(tenant, name).as_str()).map_err(broken)?;
        begun.commit().map_err(broken)?;
        functions.remove(&place).ok_or_else(|| ApiError::not_found(format!("Function not found: {name}")))
    }

    fn write(&self, function: &Function) -> Result<(), ApiError> {
        let bytes = serde_json::to_vec(function).map_err(broken)?;
        let begun = self.database.begin_write().map_err(broken)?;
        let key = key(&function.tenant, &function.name);
        begun.open_table(FUNCTIONS).map_err(broken)?.insert(key.as_str(), bytes.as_slice()).map_err(broken)?;
        begun.commit().map_err(broken)
    }
}
