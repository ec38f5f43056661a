//! What `engine top` reads of `/stats`. What it does not show it does not read, so that it understands other versions.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Clone, Debug, Deserialize)]
pub struct Statistics {
    pub graphs: Vec<GraphStatistics>,
    pub process: ProcessStatistics,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ProcessStatistics {
    pub uptime_seconds: f64,
    pub resident_bytes: u64,
    pub pool_threads: u64,
    pub pool_busy: f64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct GraphStatistics {
    pub name: String,
    pub state: String,
    pub reason: Option<String>,
    #[serde(default)]
    pub generation: u64,
    pub streams: Vec<StreamStatistics>,
    pub nodes: Vec<NodeStatistics>,
    pub culprit: Option<CulpritStatistics>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct CulpritStatistics {
    pub kind: String,
    pub text: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct StreamStatistics {
    pub stream: String,
    pub state: String,
    pub reason: Option<String>,
    pub rate_in: f64,
    pub rate_delivered: f64,
    pub rate_dropped: f64,
    pub blocked_share: f64,
    pub in_flight: u64,
    pub dropped: u64,
    pub age_ms: BTreeMap<String, f64>,
    #[serde(default)]
    pub taps: Vec<TapStatistics>,
    #[serde(default)]
    pub drops: Vec<DropStatistics>,
    #[serde(default)]
    pub busy: Vec<BusyStatistics>,
    pub culprit: Option<CulpritStatistics>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct BusyStatistics {
    pub node: String,
    pub busy_share: f64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct TapStatistics {
    pub tap: String,
    pub blocked_share: f64,
    pub held_items: u64,
    pub held_items_limit: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct DropStatistics {
    pub node: String,
    pub reason: String,
    pub count: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct NodeStatistics {
    pub name: String,
    #[serde(rename = "type")]
    pub type_name: String,
    pub role: String,
    #[serde(default)]
    pub inputs: Vec<String>,
    pub rate: f64,
    pub busy_share: f64,
    pub queued: u64,
    pub oldest_ms: Option<f64>,
    pub errors: u64,
    #[serde(default)]
    pub encoders: Vec<EncoderStatistics>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct EncoderStatistics {
    pub stream: String,
    pub threads: u64,
    pub rate: f64,
    pub busy_share: f64,
    pub queued: u64,
}
