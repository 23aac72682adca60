//! The start: all namespaces are loaded, several at a time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use zdb_engine::{Engine, Error, Mode, Name, Namespace, Settings};

use super::upkeep::Upkeep;
use super::{Absence, Asker, Clock, Core, Entry, NamespaceId, Namespaces, Policy, Waits, Worked};
use crate::commands::unavailable;
use crate::hooks::{self, Event, Hooks, MISSING_DATA};
use crate::metrics::Metrics;
use crate::refusal::display_chain;

/// The namespace that every client begins in.
pub(crate) const DEFAULT: &[u8] = b"default";
/// Namespaces that are loaded at the same time.
const LOADER_COUNT: usize = 4;

/// Why a server can't start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The engine can't say which namespaces there are.
    #[error("the list of namespaces")]
    List(#[source] Error),
    /// There is no serving without the default namespace.
    #[error("the default namespace")]
    Default(#[source] Error),
}

impl Core {
    /// Loads all namespaces. One that can't be loaded is reported, and says why to those who select
    /// it; the others serve.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(engine: Engine, policy: Policy) -> Result<Self, OpenError> {
        let default = Name::new(DEFAULT).expect("a short word is a name");
        let mut names = engine.names().map_err(OpenError::List)?;
        if !names.contains(&default) {
            let created = create(&engine, &policy, &default, settings(&policy))
                .map_err(OpenError::Default)?;
            drop(created);
            names.push(default.clone());
        }
        // The default one is listed first.
        names.sort_by_key(|name| *name != default);
        let mut namespaces = Namespaces::default();
        let mut ids = Vec::new();
        for (name, namespace) in load_all(&engine, &policy, names) {
            let namespace = namespace.map_err(|error| {
                tracing::error!(namespace = %name, error = display_chain(&error), "not served");
                Absence::Unavailable(unavailable(&error))
            });
            ids.push(namespaces.insert(Entry::new(name, namespace)));
        }
        let default = ids.first().copied().expect("the default namespace was added");
        let hooks = Hooks::new(policy.hook.clone(), policy.instance.clone());
        let mut core = Self {
            engine,
            policy,
            namespaces,
            default,
            clock: Clock::new(),
            metrics: Metrics::default(),
            hooks,
            waits: Waits::default(),
            messages: Vec::new(),
            scratch: Vec::new(),
            is_stopping: false,
            instance_id: instance_id(),
            follower_count: 0,
            touched: Vec::new(),
            unsynced: Vec::new(),
            syncs: Vec::new(),
            tasks: Vec::new(),
            answers: Vec::new(),
            woken: Vec::new(),
            failures: Vec::new(),
            upkeep: Upkeep::default(),
        };
        core.apply_policy(default).map_err(OpenError::Default)?;
        for id in ids {
            core.watch_segments(id);
        }
        Ok(core)
    }

    /// Gives the default namespace what flags say about it.
    fn apply_policy(&mut self, default: NamespaceId) -> Result<(), Error> {
        let Some(Ok(namespace)) =
            self.namespaces.get_mut(default).map(|entry| entry.namespace.as_mut())
        else {
            return Ok(());
        };
        let mut settings = namespace.settings().clone();
        settings.durability = self.policy.durability.unwrap_or(settings.durability);
        settings.size_max = self.policy.default_size_max.unwrap_or(settings.size_max);
        if settings == *namespace.settings() { Ok(()) } else { namespace.update(settings) }
    }

    /// Ends well: everything is durable, and hooks were told.
    pub fn close(&mut self) {
        for id in self.namespaces.ids().to_vec() {
            let Some(entry) = self.namespaces.remove(id) else { continue };
            self.announce_closing(&entry);
            if let Ok(namespace) = entry.namespace
                && let Err(error) = namespace.close()
            {
                let error = display_chain(&error);
                tracing::error!(namespace = %entry.name, error, "closed with losses");
            }
        }
        self.hooks.finish();
    }
}

impl Core {
    /// What a new namespace is like.
    pub(crate) fn new_settings(&self) -> Settings {
        settings(&self.policy)
    }

    /// Makes a namespace with these settings, beside the loop. Nobody sees it before it has them all.
    pub(crate) fn begin_new(
        &mut self,
        name: Name,
        settings: Settings,
        asker: Asker,
        failure: &'static str,
    ) {
        let (engine, policy) = (self.engine.clone(), self.policy.clone());
        let new = name.clone();
        let work = move || Worked::made(create(&engine, &policy, &new, settings), failure);
        self.begin_making(name, Some(asker), work);
    }
}

fn settings(policy: &Policy) -> Settings {
    let settings = Settings::default();
    Settings {
        mode: policy.mode.unwrap_or(Mode::User),
        durability: policy.durability.unwrap_or(settings.durability),
        ..settings
    }
}

/// Makes a namespace, encrypted if the policy has a secret.
fn create(
    engine: &Engine,
    policy: &Policy,
    name: &Name,
    settings: Settings,
) -> Result<Namespace, Error> {
    match &policy.secret {
        Some(secret) => engine.create_encrypted(name, settings, secret),
        None => engine.create(name, settings),
    }
}

/// Loads a namespace, and opens it if the policy has its key. A lock, which guards an operator's
/// work, ends with the process; a freeze does not.
pub(super) fn load(engine: &Engine, policy: &Policy, name: &Name) -> Result<Namespace, Error> {
    let mut namespace = open(engine, policy, name)?;
    if restore_missing(policy, &namespace) {
        drop(namespace);
        namespace = open(engine, policy, name)?;
    }
    if namespace.settings().locked {
        let settings = Settings { locked: false, ..namespace.settings().clone() };
        namespace.update(settings)?;
    }
    Ok(namespace)
}

/// Asks the hook for files that are not there (`reference: zdb 2.6`); whether it brought any.
fn restore_missing(policy: &Policy, namespace: &Namespace) -> bool {
    let mut is_restored = false;
    for file in namespace.missing_files() {
        let file = file.display().to_string();
        tracing::error!(namespace = %namespace.name(), file, "missing");
        let Some(program) = &policy.hook else { continue };
        let event = Event::new(MISSING_DATA, vec![file]);
        match hooks::run(program, &policy.instance, &event) {
            Ok(()) => is_restored = true,
            Err(error) => tracing::error!(error = display_chain(&error), "not restored"),
        }
    }
    is_restored
}

/// Loads a namespace, and opens it if the policy has its key.
fn open(engine: &Engine, policy: &Policy, name: &Name) -> Result<Namespace, Error> {
    let mut namespace = engine.load(name)?;
    if let Some(secret) = &policy.secret
        && namespace.stats().key_needed
    {
        match namespace.unlock(secret) {
            Ok(()) => {}
            Err(Error::WrongKey) => tracing::info!(namespace = %name, "waits for its key"),
            Err(error) => return Err(error),
        }
    }
    Ok(namespace)
}

type Loaded = (Name, Result<Namespace, Error>);

/// Loads namespaces on a few threads; the results are in the order of `names`.
fn load_all(engine: &Engine, policy: &Policy, names: Vec<Name>) -> Vec<Loaded> {
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<Namespace, Error>>>> =
        names.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..LOADER_COUNT.min(names.len()) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let (Some(name), Some(result)) = (names.get(index), results.get(index)) else {
                        return;
                    };
                    let loaded = load(engine, policy, name);
                    *result.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                        Some(loaded);
                }
            });
        }
    });
    let results = results.into_iter().map(|result| {
        let result = result.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        result.expect("each index was taken by one thread")
    });
    names.into_iter().zip(results).collect()
}

/// A number that tells this run of the server from others.
fn instance_id() -> u32 {
    let mut bytes = [0; 4];
    // Without randomness the process's id has to do.
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(4) => u32::from_le_bytes(bytes),
        _ => std::process::id(),
    }
}
