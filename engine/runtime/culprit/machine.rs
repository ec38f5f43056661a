//! What graphs share, and which node of which graph has most of it.

use super::super::stats::{GraphReport, NodeReport};
use super::super::watch::Shared;

/// What graphs share.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    pub pool_threads: usize,
    /// How many of them worked at once, on average.
    pub pool_busy: f64,
    /// The share of its time that each worker spends in operators.
    pub workers: Vec<f64>,
    /// How many payloads the workshop made at once, on average.
    pub workshop_busy: f64,
    /// Who works on the pool and the workers.
    pub users: Vec<User>,
    /// Events a second that slow subscribers lose.
    pub missed: f64,
}

/// A node that works on what graphs share, or `/predict`, which is of no graph.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    pub graph: String,
    pub node: String,
    pub type_name: String,
    /// `pool` or `inline`.
    pub role: &'static str,
    /// Items a second.
    pub rate: f64,
    pub busy_share: f64,
    pub busy_by_worker: Vec<f64>,
}

impl User {
    fn of(graph: &GraphReport, node: &NodeReport) -> User {
        User {
            graph: graph.name.clone(),
            node: node.name.clone(),
            type_name: node.type_name.clone(),
            role: node.role,
            rate: node.rate,
            busy_share: node.busy_share - node.making_share,
            busy_by_worker: node.busy_by_worker.clone(),
        }
    }

    /// What the pool does for requests; `None` where that is no more than what two readings may differ by.
    fn of_requests(busy_share: f64) -> Option<User> {
        (busy_share > 0.1).then(|| User {
            graph: String::new(),
            node: "/predict".to_owned(),
            type_name: "predict".to_owned(),
            role: "pool",
            rate: 0.0,
            busy_share,
            busy_by_worker: Vec::new(),
        })
    }

    /// Milliseconds of its work for one item.
    pub fn cost_ms(&self) -> Option<f64> {
        (self.rate > 0.0).then(|| self.busy_share * 1000.0 / self.rate)
    }
}

impl Machine {
    pub fn of(graphs: &[GraphReport], workers: usize, pool_threads: usize, shared: &Shared) -> Machine {
        let nodes = || graphs.iter().flat_map(|graph| graph.nodes.iter().map(move |node| (graph, node)));
        let of_worker = |worker: usize| {
            let inline = nodes().filter(|(_, node)| node.role == "inline");
            inline.filter_map(|(_, node)| node.busy_by_worker.get(worker)).sum()
        };
        let users = nodes().filter(|(_, node)| ["pool", "inline"].contains(&node.role) && node.busy_share > 0.0);
        let mut users: Vec<User> = users.map(|(graph, node)| User::of(graph, node)).collect();
        let of_graphs: f64 = users.iter().filter(|user| user.role == "pool").map(|user| user.busy_share).sum();
        users.extend(User::of_requests(shared.pool_busy - of_graphs));
        Machine {
            pool_threads,
            pool_busy: shared.pool_busy,
            workers: (0..workers).map(of_worker).collect(),
            users,
            workshop_busy: nodes().map(|(_, node)| node.making_share).sum(),
            missed: shared.missed,
        }
    }

    /// How busy the pool is, 0 to 1.
    pub fn pool_load(&self) -> f64 {
        self.pool_busy / self.pool_threads.max(1) as f64
    }

    /// The busiest worker on which the node works, and how busy it is.
    pub fn busiest_worker(&self, node: &NodeReport) -> Option<(usize, f64)> {
        let works = node.busy_by_worker.iter().zip(&self.workers).enumerate().filter(|(_, (share, _))| **share > 0.0);
        works.map(|(worker, (_, load))| (worker, *load)).max_by(|(_, a), (_, b)| a.total_cmp(b))
    }

    pub fn worker_load(&self, node: &NodeReport) -> f64 {
        self.busiest_worker(node).map_or(0.0, |(_, load)| load)
    }

    /// The node of another graph that has more of the pool than all of `graph` has, if there is one.
    pub fn other_in_pool(&self, graph: &str) -> Option<&User> {
        self.other(graph, |user| if user.role == "pool" { user.busy_share } else { 0.0 })
    }

    /// The same of the worker that a node is on.
    pub fn other_on_worker(&self, graph: &str, node: &NodeReport) -> Option<&User> {
        let (worker, _) = self.busiest_worker(node)?;
        let share = |user: &User| user.busy_by_worker.get(worker).copied().unwrap_or(0.0);
        self.other(graph, |user| if user.role == "inline" { share(user) } else { 0.0 })
    }

    fn other(&self, graph: &str, share: impl Fn(&User) -> f64) -> Option<&User> {
        let own: f64 = self.users.iter().filter(|user| user.graph == graph).map(&share).sum();
        let others = self.users.iter().filter(|user| user.graph != graph);
        others.max_by(|a, b| share(a).total_cmp(&share(b))).filter(|most| share(most) > own)
    }
}
