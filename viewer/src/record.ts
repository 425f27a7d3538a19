// A path as a video: every frame drawn in full and encoded with its own time, however slow the machine is.
import type { Eye } from "./eye";
import type { Stage } from "./stage";
import { webm } from "./webm";

interface Video {
  readonly data: Uint8Array<ArrayBuffer>;
  readonly type: string;
  readonly suffix: string;
}

const CODECS = [
  { codec: "vp09.00.31.08", name: "V_VP9" },
  { codec: "vp8", name: "V_VP8" },
] as const;
const BITS_PER_PIXEL = 0.12;
const KEY_SECONDS = 2;

export async function record(stage: Stage, eye: (t: number) => Eye, seconds: number, fps: number, progress: (share: number) => void): Promise<Video> {
  if (!("VideoEncoder" in globalThis)) throw new Error("this browser has no video encoder");
  stage.drawNow();
  const width = stage.canvas.width & ~1;
  const height = stage.canvas.height & ~1;
  const choice = await choose(width, height, fps);
  const chunks: EncodedVideoChunk[] = [];
  const failures: DOMException[] = [];
  const encoder = new VideoEncoder({ output: (chunk) => chunks.push(chunk), error: (error) => failures.push(error) });
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
  return { data: webm(chunks, { codec: choice.name, width, height, seconds: count / fps }), type: "video/webm", suffix: "webm" };
}

async function choose(width: number, height: number, fps: number) {
  for (const { codec, name } of CODECS) {
    const config = { codec, width, height, framerate: fps, bitrate: Math.round(width * height * fps * BITS_PER_PIXEL) };
    if ((await VideoEncoder.isConfigSupported(config)).supported) return { config, name };
  }
  throw new Error("this browser can encode neither VP9 nor VP8");
}
