//! Which function answers which memory addresses: the base addresses that the guest has set, as the memory bus asks for them.
//!
//! Each function with base addresses holds a [`Decode`] and says through it where it answers, whenever that changes. Where two
//! functions claim an address, the one that was plugged in first has it, which is as good as what hardware would make of it.
//!
//! Threads: vCPUs ask, functions tell. Lock order: a function's own, then the decoder's, which is held for the look alone.

use crate::bus::{BusDevice, Route, Router, Shared, WindowId};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

#[derive(Default)]
struct Answers {
    function: Option<Weak<Mutex<dyn BusDevice>>>,
    windows: Vec<(RangeInclusive<u64>, WindowId)>,
}

/// All functions' base addresses. Lies behind the addresses of PCI's memory on the memory bus.
#[derive(Default)]
pub struct Decoder {
    functions: RwLock<Vec<Answers>>,
}

impl Decoder {
    /// Nobody answers anywhere.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// One more function's way to say where it answers.
    #[must_use]
    pub fn add(self: &Arc<Self>) -> Decode {
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        functions.push(Answers::default());
        Decode { decoder: Arc::clone(self), index: functions.len() - 1 }
    }
}

impl Router for Decoder {
    fn route(&self, address: u64) -> Option<Route> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        functions.iter().find_map(|answers| {
            let (range, id) = answers.windows.iter().find(|(range, _)| range.contains(&address))?;
            let device = answers.function.as_ref()?.upgrade()?;
            Some(Route { range: range.clone(), id: *id, device })
        })
    }
}

/// One function's way to say where it answers.
#[derive(Clone)]
pub struct Decode {
    decoder: Arc<Decoder>,
    index: usize,
}

impl Decode {
    fn with(&self, change: impl FnOnce(&mut Answers)) {
        let mut functions = self.decoder.functions.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(answers) = functions.get_mut(self.index) {
            change(answers);
        }
    }

    /// Says who is reached at the addresses.
    pub fn reaches<D: BusDevice + 'static>(&self, function: &Shared<D>) {
        let function: Weak<Mutex<D>> = Arc::downgrade(function);
        let function: Weak<Mutex<dyn BusDevice>> = function;
        self.with(|answers| answers.function = Some(function));
    }

    /// The function answers at these addresses from now on, and nowhere else.
    pub fn set(&self, windows: Vec<(RangeInclusive<u64>, WindowId)>) {
        self.with(|answers| answers.windows = windows);
    }
}
