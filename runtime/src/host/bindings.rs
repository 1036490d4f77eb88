//! Types and functions generated from `stage.wit`. Parameters are borrowed, and results are owned. A module exports only
//! some of these interfaces, so each of them is looked up by itself. This file must not know what the results mean.

wasmtime::component::bindgen!({
    path: "../sdk/wit",
    inline: "
        package millstream:runtime;
        world stages {
            import millstream:stage/host@0.1.0;
            export millstream:stage/configuration@0.1.0;
            export millstream:stage/filter@0.1.0;
            export millstream:stage/%map@0.1.0;
            export millstream:stage/aggregate@0.1.0;
        }
    ",
    world: "millstream:runtime/stages",
    ownership: Borrowing { duplicate_if_necessary: true },
});

pub(super) use exports::millstream::stage::{aggregate, configuration, filter, map};
pub(super) use millstream::stage::{host, types};
