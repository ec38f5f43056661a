//! What a lease costs: taken, cloned over branches, settled and returned, for each item.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use operators::clock::{Clock, SystemClock};
use operators::lease::{Account, Ack, Budget, Lease, Limits};

fn lease(criterion: &mut Criterion) {
    let account = Arc::new(Account::default());
    let budget = Budget::new(Limits { items: 8, bytes: 64 << 20 });
    let born = SystemClock.now();
    let taken = || {
        account.read(1);
        let credit = budget.try_acquire(1 << 20).expect("everything was returned");
        Lease::new(credit, Ack::new(&account, born))
    };
    criterion.bench_function("lease/take and deliver", |bencher| {
        bencher.iter(|| black_box(taken()).ack.deliver(born));
    });
    criterion.bench_function("lease/take, four branches, a record of each, deliver", |bencher| {
        bencher.iter(|| {
            let lease = taken();
            for _ in 0..4 {
                let branch = lease.clone();
                let record = branch.derived();
                branch.ack.release();
                black_box(record).ack.deliver(born);
            }
            lease.ack.release();
        });
    });
    assert!(account.snapshot().conserved());
}

criterion_group!(benches, lease);
criterion_main!(benches);
