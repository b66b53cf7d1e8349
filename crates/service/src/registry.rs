//! The functions there are: in memory, and in a database that survives whatever happens to this process.

mod images;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

pub(crate) use self::images::Noted;
use crate::Qualifier;
use crate::api::ApiError;
use crate::model::Function;
use crate::url::UrlConfig;

/// Tenant and name, with a byte between them that is in neither.
const FUNCTIONS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("functions");

/// All functions of all tenants.
pub(crate) struct Registry {
    /// Held while something is changed, which waits for the disk.
    database: Mutex<Database>,
    /// What is in the database, for those who only look: nobody holds it for long.
    functions: Mutex<State>,
}

#[derive(Default)]
struct State {
    functions: BTreeMap<(String, String), Arc<Function>>,
    /// Whose URL has which id.
    urls: HashMap<String, (String, String)>,
}

impl State {
    fn put(&mut self, function: &Arc<Function>) {
        let place = (function.tenant.clone(), function.name.clone());
        if let Some(before) = self.functions.insert(place.clone(), Arc::clone(function)) {
            before.urls.values().for_each(|url| drop(self.urls.remove(&url.id)));
        }
        self.urls.extend(function.urls.values().map(|url| (url.id.clone(), place.clone())));
    }
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
        begun.open_table(images::IMAGES)?;
        begun.commit()?;
        let mut functions = State::default();
        let read = database.begin_read()?;
        for entry in read.open_table(FUNCTIONS)?.iter()? {
            let (key, value) = entry?;
            match serde_json::from_slice::<Function>(value.value()) {
                Ok(function) => functions.put(&Arc::new(function)),
                Err(error) => tracing::error!(%error, function = key.value().replace('\0', "/"), "is not understood"),
            }
        }
        Ok(Self { database: Mutex::new(database), functions: Mutex::new(functions) })
    }

    /// Whoever has it changes what there is, alone.
    fn changing(&self) -> MutexGuard<'_, Database> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A tenant's function.
    pub(crate) fn find(&self, tenant: &str, name: &str) -> Option<Arc<Function>> {
        self.lock().functions.get(&(tenant.to_owned(), name.to_owned())).cloned()
    }

    /// A tenant's functions, by name.
    pub(crate) fn list(&self, tenant: &str) -> Vec<Arc<Function>> {
        self.lock().functions.values().filter(|function| function.tenant == tenant).cloned().collect()
    }

    /// Whose URL has this id: the function, what of it is meant, and the URL's settings.
    pub(crate) fn find_url(&self, id: &str) -> Option<(Arc<Function>, Option<Qualifier>, UrlConfig)> {
        let state = self.lock();
        let function = state.functions.get(state.urls.get(id)?)?;
        let (qualifier, config) = function.urls.iter().find(|(_, config)| config.id == id)?;
        let qualifier = Qualifier::parse(qualifier).ok().filter(|qualifier| *qualifier != Qualifier::Latest);
        Some((Arc::clone(function), qualifier, config.clone()))
    }

    /// Everybody's.
    pub(crate) fn all(&self) -> Vec<Arc<Function>> {
        self.lock().functions.values().cloned().collect()
    }

    /// Makes a function.
    ///
    /// # Errors
    /// Conflict where there is one of that name.
    pub(crate) fn create(&self, function: Function) -> Result<Arc<Function>, ApiError> {
        let database = self.changing();
        if self.find(&function.tenant, &function.name).is_some() {
            return Err(ApiError::conflict(format!("Function already exist: {}", function.name)));
        }
        self.put(&database, function)
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
        let database = self.changing();
        let function = self.find(tenant, name).ok_or_else(|| missing(name))?;
        let mut function = Function::clone(&function);
        let result = change(&mut function)?;
        Ok((self.put(&database, function)?, result))
    }

    /// Removes a function.
    ///
    /// # Errors
    /// Not found.
    pub(crate) fn remove(&self, tenant: &str, name: &str) -> Result<Arc<Function>, ApiError> {
        let database = self.changing();
        if self.find(tenant, name).is_none() {
            return Err(missing(name));
        }
        let begun = database.begin_write().map_err(broken)?;
        begun.open_table(FUNCTIONS).map_err(broken)?.remove(key(tenant, name).as_str()).map_err(broken)?;
        begun.commit().map_err(broken)?;
        let mut state = self.lock();
        let removed = state.functions.remove(&(tenant.to_owned(), name.to_owned())).ok_or_else(|| missing(name))?;
        removed.urls.values().for_each(|url| drop(state.urls.remove(&url.id)));
        Ok(removed)
    }

    /// On the disk first, then for everybody.
    fn put(&self, database: &Database, function: Function) -> Result<Arc<Function>, ApiError> {
        let bytes = serde_json::to_vec(&function).map_err(broken)?;
        let begun = database.begin_write().map_err(broken)?;
        let key = key(&function.tenant, &function.name);
        begun.open_table(FUNCTIONS).map_err(broken)?.insert(key.as_str(), bytes.as_slice()).map_err(broken)?;
        begun.commit().map_err(broken)?;
        let function = Arc::new(function);
        self.lock().put(&function);
        Ok(function)
    }
}

fn missing(name: &str) -> ApiError {
    ApiError::not_found(format!("Function not found: {name}"))
}
