//! One address for servers that come and go.

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

/// What the server says is lost while this is on.
#[derive(Debug, Default)]
struct Losing {
    on: AtomicBool,
    bytes: AtomicU64,
}

/// Passes connections on to a server whose port changes with each start.
#[derive(Debug)]
pub struct Proxy {
    address: String,
    server: Arc<Mutex<Option<String>>>,
    /// Ends every connection.
    cut: watch::Sender<()>,
    losing: Arc<Losing>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port.
    ///
    /// # Panics
    /// Where there is none.
    pub async fn start(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let server = Arc::new(Mutex::new(Some(server.grpc.clone())));
        let cut = watch::Sender::new(());
        let losing = Arc::<Losing>::default();
        let (to, cutting, losing_answers) = (server.clone(), cut.clone(), losing.clone());
        let accepting = tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.expect("it listens");
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

    /// A client whose servers come and go.
    ///
    /// # Panics
    /// Never: the address is one.
    pub fn client(&self) -> Client {
        Client::new(&self.address).expect("the address is one")
    }

    /// Loses every connection; new ones are passed on.
    pub fn cut(&self) {
        self.cut.send_replace(());
        self.losing.on.store(false, Ordering::SeqCst);
    }

    /// Loses all that the server says from now on until the next cut.
    pub fn lose_answers(&self) {
        self.losing.bytes.store(0, Ordering::SeqCst);
        self.losing.on.store(true, Ordering::SeqCst);
    }

    /// Waits until something was lost.
    pub async fn answers_lost(&self) {
        wait_until("an answer is lost", || self.losing.bytes.load(Ordering::SeqCst) > 0).await;
    }

    /// Refuses connections: the port of a server that ended may be somebody else's at once.
    pub fn pass_to_nobody(&self) {
        *self.server.lock() = None;
    }

    /// Passes new connections on to this server.
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
        // Nothing makes sense after what was lost.
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
