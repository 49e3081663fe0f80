//! The kernel side's maps of requests.

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData},
};
use gotrace_common::{Account, GoroutineKey, OpenRequest, RequestConfig, RequestKey, RouteKey, RouteTimes};

use super::{Error, Kernel, typed};

/// The maps.
pub(super) struct Maps {
    configs: Array<MapData, RequestConfig>,
    accounts: HashMap<MapData, GoroutineKey, Account>,
    open: HashMap<MapData, RequestKey, OpenRequest>,
    routes: HashMap<MapData, RouteKey, RouteTimes>,
    thresholds: HashMap<MapData, RouteKey, u64>,
}

/// Routes that there is room for, with so many requests.
pub(super) fn routes(requests: u32) -> u32 {
    (requests / 16).max(1)
}

impl Maps {
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let mut take = |name: &str| ebpf.take_map(name).ok_or_else(|| Error::Object(format!("map {name}")));
        Ok(Self {
            configs: typed(take("REQUEST_CONFIGS")?, "REQUEST_CONFIGS")?,
            accounts: typed(take("ACCOUNTS")?, "ACCOUNTS")?,
            open: typed(take("REQUESTS")?, "REQUESTS")?,
            routes: typed(take("ROUTES")?, "ROUTES")?,
            thresholds: typed(take("THRESHOLDS")?, "THRESHOLDS")?,
        })
    }
}

impl Kernel {
    /// Sets how requests of the process in `slot` are read, and when they are slow.
    ///
    /// # Errors
    /// [`Error::Failed`] when the kernel refuses to write its map.
    pub fn configure_requests(&mut self, slot: u32, config: RequestConfig) -> Result<(), Error> {
        let set = self.requests.configs.set(slot, config, 0);
        set.map_err(|e| Error::from_loader("set how requests are read", &e))
    }

    /// Requests of a route are slow from this time on; the route's status is not looked at.
    ///
    /// # Errors
    /// [`Error::Failed`] when there is no room for more routes.
    pub fn set_threshold(&mut self, route: RouteKey, threshold_ns: u64) -> Result<(), Error> {
        let key = RouteKey { status: 0, ..route };
        let set = self.requests.thresholds.insert(key, threshold_ns, 0);
        set.map_err(|e| Error::from_loader("set when requests of a route are slow", &e))
    }

    /// All routes and statuses, and what requests of each have taken. What changes meanwhile may be seen in its old state
    /// or its new one.
    pub fn routes(&self) -> impl Iterator<Item = (RouteKey, RouteTimes)> {
        self.requests.routes.iter().filter_map(Result::ok)
    }

    /// All requests that are open, with the accounts of their goroutines.
    pub fn open_requests(&self) -> impl Iterator<Item = (RequestKey, OpenRequest, Option<Account>)> {
        self.requests.open.iter().filter_map(Result::ok).map(|(key, open)| {
            let goroutine = GoroutineKey { goid: open.goid, process: key.process, reserved: 0 };
            (key, open, self.requests.accounts.get(&goroutine, 0).ok())
        })
    }

    /// Whether a request is open still, and the same.
    #[must_use]
    pub fn is_open(&self, key: &RequestKey, start_ns: u64) -> bool {
        self.requests.open.get(key, 0).is_ok_and(|open| open.start_ns == start_ns)
    }

    /// Forgets what is known of requests of processes that `gone` names: those that are open, and with `routes` what was
    /// counted.
    pub fn forget_requests(&mut self, gone: impl Fn(u32) -> bool, routes: bool) {
        let Maps { accounts, open, routes: counted, thresholds, .. } = &mut self.requests;
        // One that has ended meanwhile is gone already.
        let keys: Vec<_> = open.keys().filter_map(Result::ok).filter(|key| gone(key.process)).collect();
        keys.iter().for_each(|key| drop(open.remove(key)));
        let keys: Vec<_> = accounts.keys().filter_map(Result::ok).filter(|key| gone(key.process)).collect();
        keys.iter().for_each(|key| drop(accounts.remove(key)));
        if !routes {
            return;
        }
        let keys: Vec<_> = counted.keys().filter_map(Result::ok).filter(|key| gone(key.process)).collect();
        keys.iter().for_each(|key| drop(counted.remove(key)));
        let keys: Vec<_> = thresholds.keys().filter_map(Result::ok).filter(|key| gone(key.process)).collect();
        keys.iter().for_each(|key| drop(thresholds.remove(key)));
    }
}
