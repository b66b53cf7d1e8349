//! Registries that give the wrong thing.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::message;
use super::tokens::{Image, open};
use crate::Error;
use crate::digest::Digest;
use crate::sources::fixtures::http::{Answer, Server};
use crate::sources::fixtures::read_layer;

/// A registry that is right except for what `change` makes of the answers for the layer.
fn layer_server(image: &Image, change: impl Fn(usize, Answer) -> Answer + Send + Sync + 'static) -> Server {
    let (image, asked) = (image.clone(), AtomicUsize::new(0));
    Server::start(move |request| {
        let answer = image.answer(request);
        if image.is_layer(request) { change(asked.fetch_add(1, Ordering::SeqCst), answer) } else { answer }
    })
}

#[test]
fn a_registry_without_ranges_starts_again() {
    let image = Image::new();
    let server =
        layer_server(&image, |asked, answer| if asked < 3 { answer.cut(100_000 * (asked + 1)) } else { answer });
    let source = open(&server, None).unwrap();
    assert_eq!(read_layer(&*source, 0).unwrap(), *image.layer);
    let ranges: Vec<String> = server.requests().iter().map(|request| request.header("range").to_owned()).collect();
    assert!(ranges.contains(&"bytes=100000-".to_owned()) && ranges.contains(&"bytes=300000-".to_owned()), "{ranges:?}");
}

#[test]
fn failures_that_pass_are_tried_again() {
    let image = Image::new();
    let server = layer_server(&image, |asked, answer| match asked {
        0 => Answer::new(503, "busy"),
        1 => Answer::new(429, "").header("Retry-After", "0"),
        _ => answer,
    });
    let source = open(&server, None).unwrap();
    assert_eq!(read_layer(&*source, 0).unwrap(), *image.layer);
}

#[test]
fn bodies_of_the_wrong_length_or_part() {
    let image = Image::new();
    let layer = image.layer.to_vec();
    let longer = [&layer[..], b"more"].concat();
    let size = layer.len();
    for (answer, reason) in [
        (Answer::new(200, longer.clone()), format!("the registry gives {} bytes", size + 4)),
        (Answer::new(200, longer).without_length(), format!("it has more than the {size} bytes")),
        (
            Answer::new(206, &layer[5..]).header("Content-Range", &format!("bytes 5-{}/{size}", size - 1)),
            "the part".into(),
        ),
        (Answer::new(206, layer.clone()).header("Content-Range", "bytes 0-9/10"), "the registry gives 10 bytes".into()),
        (Answer::new(206, layer.clone()), "the part \"\" where that from 0 was asked for".into()),
    ] {
        let answer = std::sync::Mutex::new(Some(answer));
        let server =
            layer_server(&image, move |_, _| answer.lock().unwrap().take().unwrap_or_else(|| Answer::new(404, "")));
        let error = read_layer(&*open(&server, None).unwrap(), 0).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }) && error.to_string().contains(&reason), "{reason}: {error}");
    }
    // Whoever gives no length, but all the bytes, is right.
    let server = layer_server(&image, |_, answer| answer.without_length());
    assert_eq!(read_layer(&*open(&server, None).unwrap(), 0).unwrap(), layer);
}

#[test]
fn manifests_that_are_not_taken() {
    let image = Image::new();
    let schema1 = r#"{"schemaVersion":1,"name":"x","fsLayers":[]}"#.to_owned();
    let other = Digest::of(b"other").to_string();
    for (answer, reason) in [
        (Answer::new(200, schema1), "it is a Docker schema 1 manifest"),
        (Answer::new(200, vec![b' '; (4 << 20) + 1]), "4194304 is the most a manifest may have"),
        (Answer::new(200, image.manifest.clone()).header("Docker-Content-Digest", &other), "its digest is sha256:"),
        (Answer::new(200, "<html>"), "not an image manifest or index"),
        (Answer::new(302, "").header("Location", "/v2/some/image/manifests/latest"), "redirects more than 10 times"),
        (Answer::new(302, ""), "redirects to no valid address"),
        (Answer::new(403, r#"{"errors":[{"message":"not\u001b you"}]}"#), "forbids it (403 Forbidden) not  you"),
        (Answer::new(418, ""), "answers 418"),
    ] {
        let answer = std::sync::Arc::new(answer);
        let server = Server::start(move |request| match request.target.as_str() {
            "/v2/" => Answer::new(200, ""),
            _ => (*answer).clone(),
        });
        let error = message(open(&server, None));
        assert!(error.contains("/some/image:latest") && error.contains(reason), "{reason}: {error}");
    }
}

/// The reader's thread may be anywhere, also in another runtime; and a source may go before its readers.
#[test]
fn sources_work_within_another_runtime() {
    let image = Image::new();
    let server = layer_server(&image, |_, answer| answer);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let bytes = runtime.block_on(async {
        let source = open(&server, None).unwrap();
        let mut layer = source.open_layer(0).unwrap();
        drop(source);
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut layer, &mut bytes).unwrap();
        bytes
    });
    assert_eq!(bytes, *image.layer);
}

#[test]
fn a_reader_that_is_dropped_ends_its_download() {
    let image = Image::new();
    let server = layer_server(&image, |_, answer| answer);
    let source = open(&server, None).unwrap();
    for _ in 0..20 {
        let mut layer = source.open_layer(0).unwrap();
        std::io::Read::read_exact(&mut layer, &mut [0; 10]).unwrap();
    }
    assert_eq!(read_layer(&*source, 0).unwrap(), *image.layer);
}
