//! A storage that stops before, or after, it does something, until it is let go on.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt as _,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};
use reel::{archive::Archive, store::Store};
use tokio::sync::{Semaphore, watch};

use crate::harness::{Reel, TestDatabase, service_args};

/// Where a storage may stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Nowhere,
    /// Before it reads, after so many reads that go well.
    BeforeRead(usize),
    /// Having read, after so many reads that go well.
    AfterRead(usize),
    /// Having removed something.
    AfterRemoval,
}

/// The storage, in memory.
#[derive(Clone, Debug)]
pub struct Gate {
    pub inner: Arc<InMemory>,
    stop: Arc<Mutex<Stop>>,
    /// How many have come to where it stops.
    arrived: watch::Sender<usize>,
    go_on: Arc<Semaphore>,
    /// How many reads there were.
    reads: watch::Sender<usize>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            inner: Arc::default(),
            stop: Arc::new(Mutex::new(Stop::Nowhere)),
            arrived: watch::Sender::new(0),
            go_on: Arc::new(Semaphore::new(0)),
            reads: watch::Sender::new(0),
        }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

impl Gate {
    /// A handle on a database, with this for its archive.
    pub async fn open(&self, database: &TestDatabase) -> Store {
        let store = Store::open(&database.url.parse().unwrap(), 4).await.unwrap();
        store.with_archive(Some(Archive::new(Arc::new(self.clone()), Path::default())))
    }

    /// A service with this for its archive.
    pub async fn serve(&self, database: &TestDatabase) -> Reel {
        let reel = Reel::start_with(self.open(database).await, service_args(&[])).await;
        reel.wait_until_serving().await;
        reel
    }

    /// Stops whoever gets there next, and all after them, until it is opened.
    pub fn close(&self, stop: Stop) {
        self.arrived.send_replace(0);
        self.go_on.forget_permits(usize::MAX);
        *self.stop.lock().unwrap() = stop;
    }

    /// Lets all go on.
    pub fn open_up(&self) {
        *self.stop.lock().unwrap() = Stop::Nowhere;
        self.go_on.add_permits(1_000);
    }

    /// Waits until somebody has got to where it stops.
    pub async fn somebody_waits(&self) {
        self.arrived.subscribe().wait_for(|arrived| *arrived > 0).await.unwrap();
    }

    /// How many reads there were until now.
    pub fn reads(&self) -> usize {
        *self.reads.borrow()
    }

    /// The files that are there.
    pub async fn files(&self) -> usize {
        self.inner.list(None).collect::<Vec<_>>().await.len()
    }

    /// Loses all files.
    pub async fn remove_all(&self) {
        for file in self.inner.list(None).collect::<Vec<_>>().await {
            self.inner.delete(&file.unwrap().location).await.unwrap();
        }
    }

    async fn pass(&self, is_there: impl FnOnce(&mut Stop) -> bool) {
        if is_there(&mut self.stop.lock().unwrap()) {
            self.arrived.send_modify(|arrived| *arrived += 1);
            self.go_on.acquire().await.unwrap().forget();
        }
    }
}

#[tonic::async_trait]
impl ObjectStore for Gate {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.reads.send_modify(|reads| *reads += 1);
        self.pass(|stop| if let Stop::BeforeRead(left) = stop { is_next(left) } else { false }).await;
        let read = self.inner.get_ranges(location, ranges).await;
        self.pass(|stop| if let Stop::AfterRead(left) = stop { is_next(left) } else { false }).await;
        read
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let gate = self.clone();
        let removed = self.inner.delete_stream(locations).then(move |removed| {
            let gate = gate.clone();
            async move {
                gate.pass(|stop| *stop == Stop::AfterRemoval).await;
                removed
            }
        });
        removed.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// Counts down. Whether it is at its end.
fn is_next(left: &mut usize) -> bool {
    let is_next = *left == 0;
    *left = left.saturating_sub(1);
    is_next
}
