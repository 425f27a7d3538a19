// A path as a video: every frame drawn in full and encoded with its own time, however slow the machine is.
import type { Eye } from "./eye";
import type { Stage } from "./stage";
import { mp4 } from "./mp4";
import { webm } from "./webm";

interface Video {
  readonly data: Uint8Array<ArrayBuffer>;
  readonly type: string;
  readonly suffix: string;
}

/** H.264's limits on the 16 x 16 blocks of a picture at 30 pictures a second (its table A-1), and their levels. */
const LEVELS = [[3600, "1f"], [8192, "28"], [36864, "34"]] as const;
const BITS_PER_PIXEL = 0.12;
const KEY_SECONDS = 2;

export async function record(stage: Stage, eye: (t: number) => Eye, seconds: number, fps: number, progress: (share: number) => void): Promise<Video> {
  if (!("VideoEncoder" in globalThis)) throw new Error("this browser has no video encoder");
  stage.drawNow(true);
  const width = stage.canvas.width & ~1;
  const height = stage.canvas.height & ~1;
  const choice = await choose(width, height, fps);
  const chunks: EncodedVideoChunk[] = [];
  let decoder: VideoDecoderConfig | undefined;
  const failures: DOMException[] = [];
  const encoder = new VideoEncoder({
    output: (chunk, metadata) => {
      chunks.push(chunk);
      decoder ??= metadata?.decoderConfig;
    },
    error: (error) => failures.push(error),
  });
  encoder.configure(choice.config);
  const count = Math.max(2, Math.round(seconds * fps));
  for (let i = 0; i < count && failures.length === 0; i++) {
    await stage.steady(eye(i / (count - 1)));
    const frame = new VideoFrame(stage.canvas, { timestamp: (i * 1e6) / fps, duration: 1e6 / fps, visibleRect: { x: 0, y: 0, width, height } });
    encoder.encode(frame, { keyFrame: i % (fps * KEY_SECONDS) === 0 });
    frame.close();
    progress((i + 1) / count);
  }
  await encoder.flush().catch((error: DOMException) => failures.push(error));
  if (encoder.state !== "closed") encoder.close();
  const failure = failures[0];
  if (failure) throw failure;
  const settings = decoder?.description;
  if (choice.name === "H264" && settings) {
    const bytes = ArrayBuffer.isView(settings) ? new Uint8Array(settings.buffer, settings.byteOffset, settings.byteLength) : new Uint8Array(settings);
    return { data: mp4(chunks, { settings: bytes, width, height, fps, color: decoder?.colorSpace ?? {} }), type: "video/mp4", suffix: "mp4" };
  }
  return { data: webm(chunks, { codec: choice.name, width, height, seconds: count / fps }), type: "video/webm", suffix: "webm" };
}

/** H.264, which every player knows, where the browser has an encoder for it; else what goes into WebM. */
async function choose(width: number, height: number, fps: number) {
  const blocks = Math.ceil(width / 16) * Math.ceil(height / 16);
  const levels = LEVELS.filter(([most]) => blocks <= most).slice(0, 1);
  const high = levels.flatMap(([, level]) => [`avc1.6400${level}`, `avc1.42e0${level}`].map((codec) => ({ codec, name: "H264" })));
  for (const { codec, name } of [...high, { codec: "vp09.00.31.08", name: "V_VP9" }, { codec: "vp8", name: "V_VP8" }]) {
    const config = { codec, width, height, framerate: fps, bitrate: Math.round(width * height * fps * BITS_PER_PIXEL) };
    if ((await VideoEncoder.isConfigSupported(config)).supported) return { config, name };
  }
  throw new Error("this browser can encode neither H.264 nor VP9 nor VP8");
}
