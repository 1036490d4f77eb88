//! Apache Kafka as a yardstick on the same machine in the same run: one node and its own load tools. Its jars are
//! downloaded once from Maven Central. Without Java or Maven, Kafka is left out.

mod jars;
mod load;
mod node;
mod streams;

pub use jars::{Jars, VERSION};
pub use load::{Consumed, Flushing, Load, Produced, Target};
pub use node::Node;
pub use streams::StreamsLoad;
