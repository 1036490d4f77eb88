//! Apache Kafka, to measure ourselves against on the same machine in the same run: one node of it, and its own tools for
//! load. Its jars come from Maven Central, once; without Java or Maven it is left out.

mod jars;
mod load;
mod node;
mod streams;

pub use jars::{Jars, VERSION};
pub use load::{Consumed, Flushing, Load, Produced};
pub use node::Node;
pub use streams::StreamsLoad;
