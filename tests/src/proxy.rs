//! A proxy with a fixed address for servers that are stopped and restarted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use millstream_client::Client;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::instance::wait_until;
use crate::server::Server;

/// While this is on, the proxy discards the server's answers.
#[derive(Debug, Default)]
struct Losing {
    on: AtomicBool,
    bytes: AtomicU64,
}

/// Forwards connections to a server whose port changes with each start.
#[derive(Debug)]
pub struct Proxy {
    address: String,
    server: Arc<Mutex<Option<String>>>,
    /// Ends all connections.
    cut: watch::Sender<()>,
    losing: Arc<Losing>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy that listens on a free port.
    ///
    /// # Panics
    /// Panics if there is no free port.
    pub async fn start(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("the listener has a local address").to_string();
        let server = Arc::new(Mutex::new(Some(server.grpc.clone())));
        let cut = watch::Sender::new(());
        let losing = Arc::<Losing>::default();
        let (to, cutting, losing_answers) = (server.clone(), cut.clone(), losing.clone());
        let accepting = tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.expect("the listener accepts connections");
                let (to, mut cut, losing) = (to.lock().clone(), cutting.subscribe(), losing_answers.clone());
                tokio::spawn(async move {
                    let Some(to) = to else { return };
                    let Ok(mut server) = TcpStream::connect(to).await else { return };
                    tokio::select! {
                        _ = pass_on(&mut client, &mut server, &losing) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { address, server, cut, losing, accepting }
    }

    /// Returns a client that connects through this proxy.
    ///
    /// # Panics
    /// Never, because the address is valid.
    pub fn client(&self) -> Client {
        Client::new(&self.address).expect("the address is valid")
    }

    /// Ends all connections. New connections are forwarded.
    pub fn cut(&self) {
        self.cut.send_replace(());
        self.losing.on.store(false, Ordering::SeqCst);
    }

    /// Discards the server's answers from now on until the next cut.
    pub fn lose_answers(&self) {
        self.losing.bytes.store(0, Ordering::SeqCst);
        self.losing.on.store(true, Ordering::SeqCst);
    }

    /// Waits until part of an answer was discarded.
    pub async fn answers_lost(&self) {
        wait_until("an answer is discarded", || self.losing.bytes.load(Ordering::SeqCst) > 0).await;
    }

    /// Refuses connections, because another process may take the port of an ended server at any time.
    pub fn pass_to_nobody(&self) {
        *self.server.lock() = None;
    }

    /// Forwards new connections to this server.
    pub fn pass_to(&self, server: &Server) {
        *self.server.lock() = Some(server.grpc.clone());
    }
}

async fn pass_on(client: &mut TcpStream, server: &mut TcpStream, losing: &Losing) -> (io::Result<()>, io::Result<()>) {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let requests = async {
        tokio::io::copy(&mut from_client, &mut to_server).await?;
        to_server.shutdown().await
    };
    let answers = async {
        let mut bytes = vec![0; 64 << 10];
        // Once bytes were discarded, the rest of the connection is discarded too, because it makes no sense without
        // them.
        let mut lost = false;
        loop {
            let read = from_server.read(&mut bytes).await?;
            lost |= losing.on.load(Ordering::SeqCst);
            match read {
                0 => return to_client.shutdown().await,
                read if lost => {
                    losing.bytes.fetch_add(read as u64, Ordering::SeqCst);
                }
                read => to_client.write_all(&bytes[..read]).await?,
            }
        }
    };
    tokio::join!(requests, answers)
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
