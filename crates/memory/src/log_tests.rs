//! Tests of `log`, apart from it since `tests/models.rs` builds that file a second time.

use crate::log::PageLog;
use crate::sync::LOG_SLOTS as SLOTS;

#[test]
fn each_reader_sees_every_entry_once() {
    let log = PageLog::new();
    let mut seen = 0;
    let mut all = Vec::new();
    log.push(7);
    log.push(0);
    assert!(log.read(&mut seen, |page| all.push(page)));
    assert!(log.read(&mut seen, |page| all.push(page)));
    log.push(9);
    assert!(log.read(&mut seen, |page| all.push(page)));
    assert_eq!(all, [7, 0, 9]);
    assert_eq!(seen, log.position());
}

#[test]
fn who_is_too_late_learns_it() {
    let log = PageLog::new();
    let mut seen = 0;
    for page in 0..=SLOTS as u64 {
        log.push(page);
    }
    assert!(!log.read(&mut seen, |_| {}));
    log.push(3);
    let mut all = Vec::new();
    assert!(log.read(&mut seen, |page| all.push(page)));
    assert_eq!(all, [3]);
}

#[test]
fn writers_on_several_threads_lose_nothing() {
    let log = PageLog::new();
    std::thread::scope(|scope| {
        for first in [0, 1000] {
            let log = &log;
            scope.spawn(move || (first..first + 300).for_each(|page| log.push(page)));
        }
    });
    let (mut seen, mut all) = (0, Vec::new());
    assert!(log.read(&mut seen, |page| all.push(page)));
    all.sort_unstable();
    assert_eq!(all, (0..300).chain(1000..1300).collect::<Vec<_>>());
}
