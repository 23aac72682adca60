//! Routes: which stores hold which blocks.
//!
//! An image lists stores with inclusive ranges over the first byte of a block's name. Ranges may
//! overlap: reading tries one after the other, writing goes to all that match (`reference: flist
//! 1.1`). Several ranges of one URL share one open store.
//!
//! Stores are opened when first needed, so that a route nobody needs, or one that is broken, does
//! not spoil the others. Who chooses among candidates and retries is
//! [`Fetcher`](super::fetch::Fetcher).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::dir::DirStore;
use super::http::HttpStore;
use super::policy::{Forbidden, RoutePolicy};
use super::s3::S3Store;
use super::url::{StoreUrl, Target, ZdbEndpoint};
use super::zdb::ZdbStore;
use super::{Store, StoreError, hex};
use crate::format::Route;

/// What a set of stores is opened for, where they may be, and how long it waits.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Create what is missing (folders of `dir://`), because blocks will be put.
    pub write: bool,
    /// Longest time to establish a connection.
    pub connect_timeout: Duration,
    /// Longest time for one request, from its first byte to the last byte of the reply.
    pub request_timeout: Duration,
    /// Most connections to one store at a time.
    pub connection_count_max: usize,
    /// Which routes may be followed.
    pub policy: RoutePolicy,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            write: false,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            connection_count_max: 20,
            policy: RoutePolicy::default(),
        }
    }
}

/// The stores of an image, each with the ranges it serves.
pub struct Stores {
    stores: Vec<RoutedStore>,
}

/// One store and the first bytes of the names of its blocks.
pub struct RoutedStore {
    url: StoreUrl,
    ranges: Vec<(u8, u8)>,
    options: StoreOptions,
    opened: Mutex<Option<Arc<dyn Store>>>,
}

impl Stores {
    /// Takes routes, in order of preference. Connects to nothing yet.
    #[must_use]
    pub fn new(routes: &[Route], options: &StoreOptions) -> Self {
        let mut stores: Vec<RoutedStore> = Vec::new();
        for route in routes {
            let range = (route.start, route.end);
            match stores.iter_mut().find(|store| store.url == route.url) {
                Some(store) => store.ranges.push(range),
                None => stores.push(RoutedStore {
                    url: route.url.clone(),
                    ranges: vec![range],
                    options: options.clone(),
                    opened: Mutex::new(None),
                }),
            }
        }
        Self { stores }
    }

    /// Takes stores that are open already, each with its route. Their URLs only name them.
    #[must_use]
    pub fn from_open(stores: Vec<(Route, Arc<dyn Store>)>) -> Self {
        let routed = |(route, store): (Route, Arc<dyn Store>)| RoutedStore {
            url: route.url,
            ranges: vec![(route.start, route.end)],
            options: StoreOptions::default(),
            opened: Mutex::new(Some(store)),
        };
        Self { stores: stores.into_iter().map(routed).collect() }
    }

    /// Takes routes and opens all of them for writing, so that a mistake shows before work begins.
    ///
    /// # Errors
    /// [`StoreError::ReadOnly`] for a store that can't be written, [`StoreError::Url`] if a range of
    /// first bytes has no store, or whatever opening one of them says.
    pub fn open_for_writing(routes: &[Route], options: &StoreOptions) -> Result<Self, StoreError> {
        let stores = Self::new(routes, &StoreOptions { write: true, ..options.clone() });
        for store in &stores.stores {
            if !store.url.is_writable() {
                return Err(StoreError::ReadOnly { store: store.name() });
            }
            store.store()?;
        }
        if let Some(byte) = (0..=255).find(|byte| stores.candidates(*byte).next().is_none()) {
            return Err(StoreError::Url {
                store: stores.names().join(", "),
                rule: format!("no store takes blocks whose names begin with {byte:02x}"),
            });
        }
        Ok(stores)
    }

    /// All stores, in the order of their routes.
    #[must_use]
    pub fn all(&self) -> &[RoutedStore] {
        &self.stores
    }

    /// The routes again, store by store.
    #[must_use]
    pub fn routes(&self) -> Vec<Route> {
        let of_store = |store: &RoutedStore| {
            let url = store.url.clone();
            store.ranges.clone().into_iter().map(move |(start, end)| Route {
                start,
                end,
                url: url.clone(),
            })
        };
        self.stores.iter().flat_map(of_store).collect()
    }

    /// Names of all stores, without secrets.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.stores.iter().map(RoutedStore::name).collect()
    }

    /// The stores that should have a block whose name begins with `first_byte`, each with its
    /// position in [`Stores::all`].
    pub fn candidates(&self, first_byte: u8) -> impl Iterator<Item = (usize, &RoutedStore)> {
        self.stores.iter().enumerate().filter(move |(_, store)| store.matches(first_byte))
    }

    /// Puts a block into every store whose range it is in.
    ///
    /// # Errors
    /// The first store that fails; [`StoreError::Refused`] if no range matches.
    pub fn put(&self, name: &[u8], stored: &[u8]) -> Result<(), StoreError> {
        let mut is_kept = false;
        for (_, store) in self.candidates(name.first().copied().unwrap_or_default()) {
            store.store()?.put(name, stored)?;
            is_kept = true;
        }
        if is_kept {
            return Ok(());
        }
        let reason = format!("no route takes block {}", hex(name));
        Err(StoreError::Refused { store: self.names().join(", "), reason })
    }

    /// Makes durable what was put. Stores that were never used are left alone.
    ///
    /// # Errors
    /// The first store that fails.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.stores.iter().filter_map(RoutedStore::opened).try_for_each(|store| store.sync())
    }
}

impl RoutedStore {
    /// Its URL without secrets.
    #[must_use]
    pub fn name(&self) -> String {
        self.url.to_string()
    }

    /// Whether blocks whose names begin with `first_byte` belong here.
    #[must_use]
    pub fn matches(&self, first_byte: u8) -> bool {
        self.ranges.iter().any(|(start, end)| (*start..=*end).contains(&first_byte))
    }

    /// The store itself, opened if this is the first use, or if opening failed before.
    ///
    /// # Errors
    /// What opening says.
    pub fn store(&self) -> Result<Arc<dyn Store>, StoreError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = &*opened {
            return Ok(Arc::clone(store));
        }
        let store = open(&self.url, &self.options)?;
        *opened = Some(Arc::clone(&store));
        Ok(store)
    }

    fn opened(&self) -> Option<Arc<dyn Store>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Opens one store. Only `dir://` touches anything now; the others connect with their first request,
/// and are told then if they may not connect there.
///
/// # Errors
/// For `dir://`, if the folder can't be opened or created; [`StoreError::Refused`] for a folder or unix
/// socket that the policy forbids.
pub fn open(url: &StoreUrl, options: &StoreOptions) -> Result<Arc<dyn Store>, StoreError> {
    let refused = |forbidden: Forbidden| StoreError::Refused {
        store: url.to_string(),
        reason: forbidden.to_string(),
    };
    Ok(match url.target() {
        Target::Dir(path) => {
            options.policy.check_folder(path).map_err(refused)?;
            let store = if options.write { DirStore::create(path)? } else { DirStore::open(path)? };
            if options.policy.is_restricted() {
                options.policy.check_folder(&store.path()?).map_err(refused)?;
            }
            Arc::new(store)
        }
        Target::Zdb(target) => {
            if let ZdbEndpoint::Unix(path) = &target.endpoint {
                options.policy.check_socket(path).map_err(refused)?;
            }
            Arc::new(ZdbStore::new(url.to_string(), target, options))
        }
        Target::Http(target) => Arc::new(HttpStore::new(url.to_string(), target, options)),
        Target::S3(target) => Arc::new(S3Store::new(url.to_string(), target, options)?),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::policy::AllowRule;
    use super::*;
    use crate::store::url::RouteSpec;

    fn routes(specs: &[String]) -> Vec<Route> {
        specs.iter().map(|spec| RouteSpec::parse(spec).unwrap().into()).collect()
    }

    fn dir(range: &str, path: &Path) -> String {
        format!("{range}dir://{}", path.display())
    }

    #[test]
    fn blocks_go_to_every_store_whose_range_matches() {
        let folder = tempfile::tempdir().unwrap();
        let [low, high, all] = ["low", "high", "all"].map(|name| folder.path().join(name));
        let specs = [dir("00-7f=", &low), dir("80-ff=", &high), dir("", &all)];
        let stores = Stores::open_for_writing(&routes(&specs), &StoreOptions::default()).unwrap();
        stores.put(&[0x7f; 32], b"low").unwrap();
        stores.put(&[0x80; 32], b"high").unwrap();
        stores.sync().unwrap();
        let holds = |path: &Path, byte: u8| path.join(format!("{byte:02x}")).exists();
        assert_eq!([holds(&low, 0x7f), holds(&high, 0x7f), holds(&all, 0x7f)], [true, false, true]);
        assert_eq!([holds(&low, 0x80), holds(&high, 0x80), holds(&all, 0x80)], [false, true, true]);
    }

    #[test]
    fn ranges_of_one_url_share_a_store() {
        let specs = ["00-0f=dir:///a", "f0-ff=dir:///a", "dir:///b"].map(str::to_owned);
        let stores = Stores::new(&routes(&specs), &StoreOptions::default());
        assert_eq!(stores.names(), ["dir:///a", "dir:///b"]);
        let positions = |byte| stores.candidates(byte).map(|(i, _)| i).collect::<Vec<_>>();
        assert_eq!(positions(0xf5), [0, 1]);
        assert_eq!(positions(0x80), [1]);
    }

    #[test]
    fn a_gap_between_ranges_is_refused_before_work_begins() {
        let folder = tempfile::tempdir().unwrap();
        let specs = [dir("00-7f=", folder.path()), dir("81-ff=", folder.path())];
        let Err(error) = Stores::open_for_writing(&routes(&specs), &StoreOptions::default()) else {
            panic!("opened")
        };
        assert!(error.to_string().contains("begin with 80"), "{error}");
        let stores = Stores::new(&routes(&specs), &StoreOptions::default());
        let error = stores.put(&[0x80; 32], b"x").unwrap_err();
        assert!(error.to_string().contains("no route takes block 8080"), "{error}");
    }

    #[test]
    fn a_store_that_can_not_be_written_is_refused_before_work_begins() {
        let specs = ["http://127.0.0.1:1/".to_owned()];
        let error = Stores::open_for_writing(&routes(&specs), &StoreOptions::default()).err();
        assert!(matches!(error, Some(StoreError::ReadOnly { .. })));
    }

    #[test]
    fn a_route_that_can_not_be_opened_leaves_the_others_alone() {
        let folder = tempfile::tempdir().unwrap();
        let specs = ["dir:///nonexistent/blocks".to_owned(), dir("", folder.path())];
        let stores = Stores::new(&routes(&specs), &StoreOptions::default());
        stores.all()[0].store().err().unwrap();
        assert!(matches!(
            stores.all()[1].store().unwrap().get(&[1; 32]),
            Err(StoreError::Missing { .. })
        ));
    }

    #[test]
    fn a_folder_is_judged_by_where_its_path_leads() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        for name in ["allowed", "secret"] {
            std::fs::create_dir(root.join(name)).unwrap();
        }
        std::os::unix::fs::symlink(root.join("secret"), root.join("allowed/link")).unwrap();
        let policy = RoutePolicy::restricted(vec![AllowRule::Folder(root.join("allowed"))]);
        let options = StoreOptions { policy, ..StoreOptions::default() };
        let try_open = |path: &str| {
            open(&StoreUrl::parse(&dir("", &root.join(path))).unwrap(), &options).map(drop)
        };
        try_open("allowed").unwrap();
        for path in ["secret", "allowed/link", "allowed/../secret", "missing"] {
            let error = try_open(path).unwrap_err();
            assert!(matches!(error, StoreError::Refused { .. }), "{path}: {error}");
            assert!(error.to_string().contains("a folder of this node"), "{error}");
        }
    }

    #[test]
    fn a_unix_socket_needs_a_rule() {
        let options =
            StoreOptions { policy: RoutePolicy::restricted(vec![]), ..StoreOptions::default() };
        let url = StoreUrl::parse("zdb:///run/zdb.sock").unwrap();
        let error = open(&url, &options).err().unwrap().to_string();
        let rule = "/run/zdb.sock is a unix socket of this node, which no --allow-route allows";
        assert_eq!(error, format!("zdb:///run/zdb.sock: {rule}"));
    }
}
