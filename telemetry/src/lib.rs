//! What cairn tells of its work. `inventory` has every metric that there is, `metric` how they are
//! counted, and `exposition` how they are written for Prometheus. Who counts what is the affair of
//! the crates above, and so is who may read it.

pub mod exposition;
pub mod inventory;
pub mod metric;
