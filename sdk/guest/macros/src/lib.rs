//! The attributes `#[filter]`, `#[map]` and `#[aggregate]` of the `millstream` crate.
//!
//! Each attribute leaves the item unchanged, so that it can be tested natively, and adds the bindings of one world of
//! `stage.wit` for wasm32. The bindings are expanded in the author's crate, because bindings in a library would put all
//! three worlds into every module.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::quote;
use syn::spanned::Spanned;
use syn::{Error, FnArg, Ident, ItemFn, ItemImpl, Result, Type, parse_macro_input};

/// The interface definition from which the bindings are generated.
const WIT: &str = include_str!("../../../wit/stage.wit");

/// Turns a function into the filter of the module.
///
/// The function is `fn(record: &Record) -> Result<bool>`. It may have a second parameter `config: &C`, where `C`
/// implements [`Deserialize`](https://docs.rs/serde) and receives the parameters of the stage.
#[proc_macro_attribute]
pub fn filter(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let function = parse_macro_input!(item as ItemFn);
    function_stage(attribute.into(), function, &FILTER).unwrap_or_else(Error::into_compile_error).into()
}

/// Turns a function into the map of the module.
///
/// The function is `fn(record: &Record, out: &mut Output) -> Result<()>`. It may have a third parameter `config: &C`,
/// where `C` implements [`Deserialize`](https://docs.rs/serde) and receives the parameters of the stage.
#[proc_macro_attribute]
pub fn map(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let function = parse_macro_input!(item as ItemFn);
    function_stage(attribute.into(), function, &MAP).unwrap_or_else(Error::into_compile_error).into()
}

/// Turns an `impl Aggregate for T` into the aggregate of the module. `T` is a unit struct, or, with
/// `#[aggregate(config)]`, a struct that implements `Deserialize` and receives the parameters of the stage.
#[proc_macro_attribute]
pub fn aggregate(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let implementation = parse_macro_input!(item as ItemImpl);
    aggregate_stage(attribute.into(), implementation).unwrap_or_else(Error::into_compile_error).into()
}

/// The differences between filter and map.
struct FunctionKind {
    attribute: &'static str,
    world: &'static str,
    /// Number of parameters before the configuration.
    parameters: usize,
    signature: &'static str,
    glue: fn(&Ident, Tokens) -> Tokens,
}

const FILTER: FunctionKind = FunctionKind {
    attribute: "filter",
    world: "filter-stage",
    parameters: 1,
    signature: "fn(record: &Record) -> Result<bool> or fn(record: &Record, config: &Config) -> Result<bool>",
    glue: |name, config| {
        quote! {
            impl bindings::exports::millstream::stage::filter::Guest for Stage {
                fn run(input: bindings::exports::millstream::stage::filter::Batch)
                    -> bindings::exports::millstream::stage::filter::Filtered
                {
                    let batch = ::millstream::__rt::batch!(input);
                    let filtered = ::millstream::__rt::run_filter(&batch, |record| super::#name(record #config));
                    bindings::exports::millstream::stage::filter::Filtered {
                        verdicts: filtered.verdicts,
                        failures: ::millstream::__rt::failures!(bindings, filtered.failures),
                    }
                }
            }
        }
    },
};

const MAP: FunctionKind = FunctionKind {
    attribute: "map",
    world: "map-stage",
    parameters: 2,
    signature: "fn(record: &Record, out: &mut Output) -> Result<()>, or with a third parameter config: &Config",
    glue: |name, config| {
        quote! {
            impl bindings::exports::millstream::stage::map::Guest for Stage {
                fn run(input: bindings::exports::millstream::stage::map::Batch)
                    -> bindings::exports::millstream::stage::map::Mapped
                {
                    let batch = ::millstream::__rt::batch!(input);
                    let mapped = ::millstream::__rt::run_map(&batch, |record, out| super::#name(record, out #config));
                    bindings::exports::millstream::stage::map::Mapped {
                        sources: mapped.sources,
                        timestamps: mapped.timestamps,
                        keys: mapped.keys.map(|column| ::millstream::__rt::to_column!(bindings, column)),
                        values: mapped.values.map(|column| ::millstream::__rt::to_column!(bindings, column)),
                        headers: mapped.headers.map(|headers| bindings::millstream::stage::types::Headers {
                            counts: headers.counts,
                            names: ::millstream::__rt::to_column!(bindings, headers.names),
                            values: ::millstream::__rt::to_column!(bindings, headers.values),
                        }),
                        failures: ::millstream::__rt::failures!(bindings, mapped.failures),
                    }
                }
            }
        }
    },
};

fn function_stage(attribute: Tokens, function: ItemFn, kind: &FunctionKind) -> Result<Tokens> {
    no_arguments(&attribute, kind.attribute)?;
    let signature = &function.sig;
    let wrong = |span, what: &str| {
        Error::new(span, format!("{what}: #[millstream::{}] expects {}", kind.attribute, kind.signature))
    };
    if let Some(receiver) = signature.receiver() {
        return Err(wrong(receiver.span(), "a method cannot be a stage"));
    }
    if let Some(asyncness) = signature.asyncness {
        return Err(wrong(asyncness.span(), "a stage cannot be async"));
    }
    if signature.generics.type_params().next().is_some() {
        return Err(wrong(signature.generics.span(), "a stage cannot be generic"));
    }
    let extra = signature.inputs.len().checked_sub(kind.parameters);
    let config = match extra {
        Some(0) => None,
        Some(1) => match signature.inputs.last() {
            Some(FnArg::Typed(typed)) => match typed.ty.as_ref() {
                Type::Reference(reference) if reference.mutability.is_none() => Some(reference.elem.as_ref()),
                other => return Err(wrong(other.span(), "the configuration must be a shared reference")),
            },
            _ => None,
        },
        _ => return Err(wrong(signature.inputs.span(), "the function has the wrong number of parameters")),
    };
    let name = &signature.ident;
    let passed = if config.is_some() { quote!(, configured()) } else { Tokens::new() };
    let glue = (kind.glue)(name, passed);
    let configuration = match config {
        None => quote! {
            fn configure(parameters: &[(String, String)]) -> Result<(), String> {
                ::millstream::__rt::no_parameters(parameters)
            }
        },
        Some(config) => parsed_configuration(quote!(#config)),
    };
    Ok(module(&quote!(#function), kind.world, &configuration, &glue))
}

fn aggregate_stage(attribute: Tokens, implementation: ItemImpl) -> Result<Tokens> {
    let configured = match attribute.to_string().as_str() {
        "" => false,
        "config" => true,
        _ => {
            return Err(Error::new(
                attribute.span(),
                "write #[millstream::aggregate], or #[millstream::aggregate(config)] for a struct that receives the parameters of the stage",
            ));
        }
    };
    let is_aggregate = implementation
        .trait_
        .as_ref()
        .and_then(|(_, path, _)| path.segments.last())
        .is_some_and(|segment| segment.ident == "Aggregate");
    if !is_aggregate {
        return Err(Error::new(
            implementation.self_ty.span(),
            "#[millstream::aggregate] must be placed on `impl Aggregate for …`",
        ));
    }
    let this = implementation.self_ty.as_ref();
    let (configuration, stage) = if configured {
        (parsed_configuration(quote!(#this)), quote!(configured()))
    } else {
        let configuration = quote! {
            fn configure(parameters: &[(String, String)]) -> Result<(), String> {
                ::millstream::__rt::no_parameters(parameters)
            }
        };
        (configuration, quote!(&#this))
    };
    let glue = quote! {
        impl bindings::exports::millstream::stage::aggregate::Guest for Stage {
            fn add(
                input: bindings::exports::millstream::stage::aggregate::Batch,
                groups: Vec<u32>,
                accumulators: bindings::exports::millstream::stage::aggregate::Column,
            ) -> bindings::exports::millstream::stage::aggregate::Added {
                let batch = ::millstream::__rt::batch!(input);
                let accumulators = ::millstream::__rt::from_column!(accumulators);
                let added = ::millstream::__rt::run_add(#stage, &batch, &groups, &accumulators);
                bindings::exports::millstream::stage::aggregate::Added {
                    accumulators: ::millstream::__rt::to_column!(bindings, added.accumulators),
                    failures: ::millstream::__rt::failures!(bindings, added.failures),
                }
            }

            fn merge(
                left: bindings::exports::millstream::stage::aggregate::Column,
                right: bindings::exports::millstream::stage::aggregate::Column,
            ) -> bindings::exports::millstream::stage::aggregate::Column {
                let left = ::millstream::__rt::from_column!(left);
                let right = ::millstream::__rt::from_column!(right);
                let merged = ::millstream::__rt::run_merge(#stage, &left, &right);
                ::millstream::__rt::to_column!(bindings, merged)
            }

            fn finish(
                keys: bindings::exports::millstream::stage::aggregate::Column,
                accumulators: bindings::exports::millstream::stage::aggregate::Column,
            ) -> bindings::exports::millstream::stage::aggregate::Finished {
                let keys = ::millstream::__rt::from_column!(keys);
                let accumulators = ::millstream::__rt::from_column!(accumulators);
                let finished = ::millstream::__rt::run_finish(#stage, &keys, &accumulators);
                bindings::exports::millstream::stage::aggregate::Finished {
                    values: ::millstream::__rt::to_column!(bindings, finished.values),
                    failures: ::millstream::__rt::failures!(bindings, finished.failures),
                }
            }
        }
    };
    Ok(module(&quote!(#implementation), "aggregate-stage", &configuration, &glue))
}

fn no_arguments(attribute: &Tokens, name: &str) -> Result<()> {
    if attribute.is_empty() {
        return Ok(());
    }
    Err(Error::new(attribute.span(), format!("#[millstream::{name}] takes no arguments")))
}

/// Generates code that parses the parameters once and stores the result.
fn parsed_configuration(config: Tokens) -> Tokens {
    quote! {
        static CONFIGURED: ::std::sync::OnceLock<#config> = ::std::sync::OnceLock::new();

        fn configured() -> &'static #config {
            CONFIGURED.get().expect("the host configures a stage before it calls it")
        }

        fn configure(parameters: &[(String, String)]) -> Result<(), String> {
            let parsed: #config = ::millstream::__rt::parse_parameters(parameters)?;
            CONFIGURED.set(parsed).map_err(|_| String::from("a stage can be configured only once"))
        }
    }
}

fn module(item: &Tokens, world: &str, configuration: &Tokens, glue: &Tokens) -> Tokens {
    quote! {
        #item

        #[cfg(target_arch = "wasm32")]
        #[doc(hidden)]
        #[allow(warnings, clippy::all)]
        mod __millstream_stage {
            use super::*;

            mod bindings {
                ::millstream::__rt::wit_bindgen::generate!({
                    inline: #WIT,
                    world: #world,
                    runtime_path: "::millstream::__rt::wit_bindgen::rt",
                });
            }

            struct Stage;

            #configuration

            impl bindings::exports::millstream::stage::configuration::Guest for Stage {
                fn configure(parameters: Vec<(String, String)>) -> Result<(), String> {
                    ::millstream::__rt::start(|level, message| {
                        use bindings::millstream::stage::host::{Level, log};
                        let level = match level {
                            ::millstream::log::Level::Trace => Level::Trace,
                            ::millstream::log::Level::Debug => Level::Debug,
                            ::millstream::log::Level::Info => Level::Info,
                            ::millstream::log::Level::Warn => Level::Warn,
                            ::millstream::log::Level::Error => Level::Error,
                        };
                        log(level, message);
                    });
                    configure(&parameters)
                }
            }

            #glue

            bindings::export!(Stage with_types_in bindings);
        }
    }
}
