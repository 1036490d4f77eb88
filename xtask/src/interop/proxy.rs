//! A proxy between clients and a server, which can cut all their connections.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

const BUFFER_BYTES: usize = 64 << 10;

/// A proxy that accepts connections until the program ends.
pub(super) struct Proxy {
    pub(super) address: String,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    /// Listens on a free port, and forwards connections to `server`.
    pub(super) fn start(server: String) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("there is no free port for a proxy")?;
        let address = listener.local_addr().context("a listener has no address")?.to_string();
        let open = Arc::<Mutex<Vec<TcpStream>>>::default();
        let accepted = open.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A connection that cannot be forwarded is closed, as if the server had refused it.
                let _ = forward(client, &server, &accepted);
            }
        });
        Ok(Self { address, open })
    }

    /// Cuts all connections.
    pub(super) fn cut(&self) {
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // The peer may have closed it already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn forward(client: TcpStream, server: &str, open: &Mutex<Vec<TcpStream>>) -> std::io::Result<()> {
    let server = TcpStream::connect(server)?;
    server.set_nodelay(true)?;
    client.set_nodelay(true)?;
    let mut all = open.lock().unwrap_or_else(PoisonError::into_inner);
    all.extend([client.try_clone()?, server.try_clone()?]);
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || pass_on(from, to));
    std::thread::spawn(move || pass_on(server, client));
    Ok(())
}

/// Passes bytes on until either side ends, and then ends both.
fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
