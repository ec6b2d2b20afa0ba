//! Cold storage: old sessions' actions as ordinary Parquet files, called segments, in a folder or in S3-compatible storage.
//!
//! A segment is written once and never changed. It has whole sessions, sorted by id, each session's actions in the order of
//! playback; the statistics of its pages lead to a session's pages without reading others. Which sessions are in which
//! segment only the database says: what it does not name is not there.

mod format;
mod read;
mod table;
mod write;

use std::{
    collections::VecDeque,
    fmt,
    ops::Range,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use object_store::{
    ObjectStore, ObjectStoreExt as _, RetryConfig, aws::AmazonS3Builder, local::LocalFileSystem, path::Path,
};
use parquet::{errors::ParquetError, file::metadata::ParquetMetaData};

pub use self::{
    format::{ArchivedAction, RowDigest},
    read::{Reader, Wanted},
    table::{TableRow, TableWriter, read_table},
    write::{SEGMENT_ACTIONS, SegmentWriter, Written},
};
use crate::error::{Error, Result};

/// Segments whose footers are kept in memory: some 100 KB each.
const FOOTERS: usize = 64;

/// How long a request to the storage is tried again for.
const RETRY_FOR: Duration = Duration::from_secs(10);

/// Where segments are kept. Shows no key when printed: keys come from the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveUrl(Place);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Folder(PathBuf),
    Bucket { bucket: String, prefix: String },
}

impl FromStr for ArchiveUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let place = match text.split_once("://") {
            None if text.is_empty() => return Err("must be a folder or s3://BUCKET/PREFIX".to_owned()),
            None => Place::Folder(PathBuf::from(text)),
            Some(("file", folder)) if folder.starts_with('/') => Place::Folder(PathBuf::from(folder)),
            Some(("s3", place)) => {
                let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
                let is_name = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '.' | '_');
                if bucket.is_empty() || !bucket.chars().all(is_name) {
                    return Err("must name a bucket, as in s3://BUCKET/PREFIX".to_owned());
                }
                Path::parse(prefix).map_err(|_| "the part after the bucket is no prefix of keys".to_owned())?;
                Place::Bucket { bucket: bucket.to_owned(), prefix: prefix.trim_matches('/').to_owned() }
            }
            Some(_) => return Err("must be a folder, file:///FOLDER or s3://BUCKET/PREFIX".to_owned()),
        };
        Ok(Self(place))
    }
}

impl fmt::Display for ArchiveUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Folder(folder) => write!(f, "{}", folder.display()),
            Place::Bucket { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

/// A segment as the database knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SegmentFile {
    /// Its key, below the archive's URL.
    pub path: String,
    /// How many bytes it has.
    pub bytes: u64,
}

/// The footers that were read last, the last one first.
type Footers = VecDeque<(SegmentFile, Arc<ParquetMetaData>)>;

/// The storage of segments. Cheap to clone.
#[derive(Clone)]
pub struct Archive {
    storage: Arc<dyn ObjectStore>,
    /// What every key begins with.
    prefix: Path,
    /// Where the storage is a folder: what an interrupted writer left in it is not to be seen through the storage.
    folder: Option<PathBuf>,
    footers: Arc<Mutex<Footers>>,
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Archive({})", self.storage)
    }
}

/// The storage cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the archive {url}")]
pub struct Unusable {
    url: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl Archive {
    /// Opens the storage. A folder is made if it is not there; keys and region of a bucket come from the environment
    /// (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, …).
    pub fn open(url: &ArchiveUrl) -> Result<Self, Unusable> {
        let unusable = |source| Unusable { url: url.to_string(), source };
        match &url.0 {
            Place::Folder(folder) => {
                std::fs::create_dir_all(folder).map_err(|error| unusable(error.into()))?;
                let storage = LocalFileSystem::new_with_prefix(folder).map_err(|error| unusable(error.into()))?;
                // Rows are dropped for good once their segment is written.
                let storage = storage.with_fsync(true);
                Ok(Self { folder: Some(folder.clone()), ..Self::new(Arc::new(storage), Path::default()) })
            }
            Place::Bucket { bucket, prefix } => {
                // Said once for the process, where more than one implementation might be there.
                let _ = rustls::crypto::ring::default_provider().install_default();
                let retry = RetryConfig { retry_timeout: RETRY_FOR, max_retries: 5, ..RetryConfig::default() };
                let storage = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry).build();
                let storage = storage.map_err(|error| unusable(error.into()))?;
                Ok(Self::new(Arc::new(storage), Path::from(prefix.as_str())))
            }
        }
    }

    /// An archive in any storage.
    #[must_use]
    pub fn new(storage: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        Self { storage, prefix, folder: None, footers: Arc::default() }
    }

    /// Removes a file, whole or half-written. One that is not there is removed already.
    pub async fn remove(&self, path: &str) -> Result<()> {
        self.footers.lock().unwrap_or_else(PoisonError::into_inner).retain(|(file, _)| file.path != path);
        match self.storage.delete(&self.key(path)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(failed(path, &error)),
        }
        let Some(file) = self.folder.as_ref().map(|folder| folder.join(path)) else { return Ok(()) };
        let removed = tokio::task::spawn_blocking(move || remove_parts(&file)).await;
        match removed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                tracing::warn!(%error, path, "a half-written segment cannot be removed");
                Err(Error::ArchiveUnavailable)
            }
            Err(_) => Err(Error::Internal),
        }
    }

    fn key(&self, path: &str) -> Path {
        path.split('/').fold(self.prefix.clone(), Path::join)
    }

    async fn ranges(&self, path: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, object_store::Error> {
        self.storage.get_ranges(&self.key(path), ranges).await
    }

    /// Why a segment cannot be read: a file that is shorter than it should be makes the storage fail.
    async fn diagnose(&self, file: &SegmentFile, error: &ParquetError) -> Error {
        match unreadable(&file.path, error) {
            Error::ArchiveUnavailable => match self.storage.head(&self.key(&file.path)).await {
                Ok(found) if found.size != file.bytes => {
                    tracing::error!(path = file.path, found.size, expected = file.bytes, "a segment has lost its size");
                    Error::SegmentDamaged
                }
                _ => Error::ArchiveUnavailable,
            },
            other => other,
        }
    }

    fn footer(&self, file: &SegmentFile) -> Option<Arc<ParquetMetaData>> {
        let mut footers = self.footers.lock().unwrap_or_else(PoisonError::into_inner);
        let index = footers.iter().position(|(known, _)| known == file)?;
        let entry = footers.remove(index)?;
        let footer = Arc::clone(&entry.1);
        footers.push_front(entry);
        Some(footer)
    }

    fn remember(&self, file: &SegmentFile, footer: &Arc<ParquetMetaData>) {
        let mut footers = self.footers.lock().unwrap_or_else(PoisonError::into_inner);
        footers.push_front((file.clone(), Arc::clone(footer)));
        footers.truncate(FOOTERS);
    }
}

/// A folder's writer writes beside the file, under its name with a number, until it is whole.
fn remove_parts(file: &std::path::Path) -> std::io::Result<()> {
    let (Some(folder), Some(name)) = (file.parent(), file.file_name().and_then(|name| name.to_str())) else {
        return Ok(());
    };
    let entries = match folder.read_dir() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let is_part =
            entry.file_name().to_str().and_then(|other| other.strip_prefix(name)?.strip_prefix('#')).is_some();
        if is_part {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The storage did not do what it was to do.
fn failed(path: &str, error: &object_store::Error) -> Error {
    tracing::warn!(%error, path, "the archive failed");
    match error {
        object_store::Error::NotFound { .. } => Error::SegmentMissing,
        _ => Error::ArchiveUnavailable,
    }
}

/// A segment cannot be read, for its storage or for its contents.
fn unreadable(path: &str, error: &ParquetError) -> Error {
    if let ParquetError::External(inner) = error {
        if let Some(error) = inner.downcast_ref::<object_store::Error>() {
            return failed(path, error);
        }
        if let Some(error) = inner.downcast_ref::<std::io::Error>() {
            tracing::warn!(%error, path, "the archive failed");
            return Error::ArchiveUnavailable;
        }
    }
    tracing::error!(%error, path, "a segment is damaged");
    Error::SegmentDamaged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_folders_or_buckets() {
        for right in ["archive", "/var/lib/reel", "file:///var/lib/reel", "s3://bucket", "s3://my-bucket/reel/sessions"]
        {
            assert!(right.parse::<ArchiveUrl>().is_ok(), "{right}");
        }
        for wrong in ["", "s3://", "s3:///x", "s3://a b", "ftp://x", "file://x", "s3://bucket/a//b"] {
            assert!(wrong.parse::<ArchiveUrl>().is_err(), "{wrong}");
        }
    }
}
