//! The stores of a worker's sandboxes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use snowmelt_store::{Store, StoreOptions};

use crate::Error;
use crate::agent::protocol::AgentConfig;

/// Those that are in use, by how they are reached, and by root: what two sandboxes want of one is fetched once.
#[derive(Default)]
pub(super) struct Stores(Mutex<HashMap<(String, String), Arc<Store>>>);

impl Stores {
    /// One connection to a store for all sandboxes that read from it in the same way.
    pub(super) fn get(&self, config: &AgentConfig, root: &str) -> Result<Arc<Store>, Error> {
        let failed = |error: snowmelt_store::Error| Error::invalid(&config.store, error.to_string());
        let way = format!("{}\n{:?}\n{}", config.store, config.s3, config.allow_http);
        let key = (way, root.to_owned());
        let mut stores = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = stores.get(&key) {
            return Ok(Arc::clone(store));
        }
        let same_way = stores.iter().find(|((way, _), _)| *way == key.0).map(|(_, store)| store.at_root(root));
        if let Some(store) = same_way {
            let store = Arc::new(store.map_err(failed)?);
            stores.insert(key, Arc::clone(&store));
            return Ok(store);
        }
        let options = StoreOptions {
            allow_http: config.allow_http,
            root: None,
            s3: config.s3.clone(),
            // What is tried again is tried by who waits.
            patience: Duration::ZERO,
            ..StoreOptions::default()
        };
        let store = Store::open(&config.store, &options).and_then(|store| store.at_root(root)).map_err(failed)?;
        let store = Arc::new(store);
        stores.insert(key, Arc::clone(&store));
        Ok(store)
    }
}
