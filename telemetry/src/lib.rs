//! What cairn tells of its work. `inventory` has every metric that there is, `metric` how they are
//! counted, and `exposition` how they are written for Prometheus. `operations` knows what is under
//! way, `grpc` counts what is asked over gRPC, and `trace` ties together what is done for one request.
//! Who else counts what is the affair of the crates above, and so is who may read it.

pub mod exposition;
pub mod grpc;
pub mod inventory;
pub mod metric;
pub mod operations;
pub mod trace;
