//! The intake by itself.

use std::future::poll_fn;

use super::{super::room::TICK, *};

/// A body of these chunks that then says nothing more.
struct Chunks(VecDeque<Bytes>);

impl Body for Chunks {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.pop_front().map_or(Poll::Pending, |chunk| Poll::Ready(Some(Ok(Frame::data(chunk)))))
    }
}

fn message(length: usize) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(length).expect("short").to_be_bytes());
    bytes.extend(vec![7; length]);
    bytes
}

async fn read(body: &mut IntakeBody<Chunks>) -> Option<Bytes> {
    let frame = poll_fn(|cx| Poll::Ready(Pin::new(&mut *body).poll_frame(cx))).await;
    match frame {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
        _ => None,
    }
}

#[tokio::test]
async fn all_bytes_come_through_however_they_are_cut_and_each_message_has_a_permit() {
    let whole: Vec<u8> = [0, 1, 3_000, 5].into_iter().flat_map(message).collect();
    for size in [1, 2, 4, 5, 6, 7, 100, whole.len()] {
        let intake = Intake::new(1, 4_000, Duration::from_mins(1));
        let chunks = whole.chunks(size).map(Bytes::copy_from_slice).collect();
        let (mut body, permits) = intake.admit(Chunks(chunks));
        let mut seen = Vec::new();
        while let Some(data) = read(&mut body).await {
            seen.extend_from_slice(&data);
        }
        assert_eq!(seen, whole, "chunks of {size}");
        let taken: Vec<_> = std::iter::from_fn(|| permits.take(|| usize::MAX)).map(|p| p.num_permits()).collect();
        assert_eq!(taken, [1, 1, 3, 1], "chunks of {size}");
    }
}

#[tokio::test]
async fn a_message_waits_until_those_before_it_are_done_with() {
    // Most of it is for messages of this size.
    let intake = Intake::new(1, 1 << 20, Duration::from_mins(1));
    let chunks = || Chunks([Bytes::from(message(600 << 10))].into());
    let (mut first, first_permits) = intake.admit(chunks());
    let (mut second, second_permits) = intake.admit(chunks());
    assert!(read(&mut first).await.is_some());
    assert!(read(&mut second).await.is_none());
    assert!(!first_permits.is_arriving() && second_permits.is_arriving());
    let permit = first_permits.take(|| 600 << 10);
    assert!(read(&mut second).await.is_none());
    drop(permit);
    assert!(read(&mut second).await.is_some());
    assert!(!second_permits.is_arriving());
    assert!(second_permits.take(|| 600 << 10).is_some());
}

#[tokio::test]
async fn small_messages_do_not_wait_for_large_ones() {
    let intake = Intake::new(1, 1 << 20, Duration::from_mins(1));
    let (mut large, _held) = intake.admit(Chunks([Bytes::from(message(700 << 10))].into()));
    assert!(read(&mut large).await.is_some());
    let (mut small, permits) = intake.admit(Chunks([Bytes::from(message(SMALL_BYTES))].into()));
    assert!(read(&mut small).await.is_some());
    assert!(permits.take(|| 0).is_some());
    let (mut larger, _) = intake.admit(Chunks([Bytes::from(message(SMALL_BYTES + 1))].into()));
    assert!(read(&mut larger).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_request_is_small_has_room_of_its_own_and_is_complete_in_time() {
    let intake = Intake::new(8, 4 << 20, Duration::from_mins(1));
    let half = |length: usize| Chunks([Bytes::from(message(length)).split_to(length / 2)].into());
    let (mut large, _) = intake.admit_request(half(Intake::REQUEST_BYTES + 1), true);
    poll_fn(|cx| Pin::new(&mut large).poll_frame(cx)).await.expect("a frame").expect_err("it is too large");
    // 256 KiB are for small requests, and as many for others.
    let (mut first, first_permits) = intake.admit_request(half(Intake::REQUEST_BYTES - 1), true);
    let (mut second, _second_permits) = intake.admit_request(half(Intake::REQUEST_BYTES - 1), true);
    let (mut small, _small_permits) = intake.admit_request(half(1_000), true);
    assert!(read(&mut first).await.is_some());
    assert!(read(&mut second).await.is_none(), "there is no more room");
    assert!(read(&mut small).await.is_some());
    first_permits.release();
    assert!(read(&mut second).await.is_some());
    let stalled = tokio::time::timeout(Duration::from_secs(61), poll_fn(|cx| Pin::new(&mut second).poll_frame(cx)));
    stalled.await.expect("in time").expect("a frame").expect_err("it is not complete");
    // Of uploads, only messages that have begun have a time.
    let (mut silent, _) = intake.admit_request(Chunks(VecDeque::new()), true);
    let stalled = tokio::time::timeout(Duration::from_secs(61), poll_fn(|cx| Pin::new(&mut silent).poll_frame(cx)));
    stalled.await.expect("in time").expect("a frame").expect_err("it has not even begun");
    let (mut silent, _) = intake.admit(Chunks(VecDeque::new()));
    tokio::time::timeout(Duration::from_hours(1), poll_fn(|cx| Pin::new(&mut silent).poll_frame(cx)))
        .await
        .expect_err("it may begin when it likes");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_stalls_in_the_way_of_others_is_given_up_soon() {
    let intake = Intake::new(1, 1 << 20, Duration::from_mins(10));
    let whole = message(700 << 10);
    let half = || Chunks([Bytes::copy_from_slice(&whole[..350 << 10])].into());
    let (mut stalled, permits) = intake.admit(half());
    assert!(read(&mut stalled).await.is_some());
    tokio::time::timeout(Duration::from_mins(1), poll_fn(|cx| Pin::new(&mut stalled).poll_frame(cx)))
        .await
        .expect_err("it is in nobody's way");
    let (mut waiting, _permits) = intake.admit(half());
    assert!(read(&mut waiting).await.is_none());
    let given_up = tokio::time::timeout(2 * TICK, poll_fn(|cx| Pin::new(&mut stalled).poll_frame(cx))).await;
    given_up.expect("soon").expect("a frame").expect_err("stalled");
    drop((stalled, permits));
    assert!(read(&mut waiting).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_message_that_stalls_is_given_up_and_silence_between_messages_is_not() {
    let intake = Intake::new(1, 1 << 20, Duration::from_secs(30));
    let whole = message(100);
    let (mut quiet, _permits) = intake.admit(Chunks([Bytes::from(whole.clone())].into()));
    assert!(read(&mut quiet).await.is_some());
    let (mut stalled, _permits) = intake.admit(Chunks([Bytes::copy_from_slice(&whole[..50])].into()));
    assert!(read(&mut stalled).await.is_some());
    tokio::time::timeout(Duration::from_hours(1), poll_fn(|cx| Pin::new(&mut quiet).poll_frame(cx)))
        .await
        .expect_err("silence is no fault");
    let error = poll_fn(|cx| Pin::new(&mut stalled).poll_frame(cx)).await.expect("a frame").expect_err("stalled");
    let status = error.downcast_ref::<Status>().expect("a status");
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
}
