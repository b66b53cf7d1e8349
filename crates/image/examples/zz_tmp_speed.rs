fn main() {
    let s: snowmelt_image::SourceRef = std::env::args().nth(1).unwrap().parse().unwrap();
    let plain = std::env::args().nth(2);
    for _ in 0..3 {
        let t = std::time::Instant::now();
        let n = if let Some(f) = &plain {
            let f = std::io::BufReader::with_capacity(256 << 10, std::fs::File::open(f).unwrap());
            std::io::copy(&mut flate2::bufread::MultiGzDecoder::new(f), &mut std::io::sink()).unwrap()
        } else {
            let src = snowmelt_image::open(&s, &Default::default()).unwrap();
            let mut n = 0;
            let mut buf = vec![0; 256 << 10];
            for i in 0..src.layers().len() {
                let mut r = snowmelt_image::open_layer_tar(&*src, i).unwrap();
                loop {
                    let c = r.read(&mut buf).unwrap();
                    if c == 0 {
                        break;
                    }
                    n += c as u64;
                }
            }
            n
        };
        println!("{n} bytes, {:?}, {:.0} MB/s", t.elapsed(), n as f64 / t.elapsed().as_secs_f64() / 1e6);
    }
}
