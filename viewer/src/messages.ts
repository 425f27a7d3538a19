// Written by scripts/build-viewer from scenetx/serve/messages.py. Do not edit.

export interface ViewInfo {
  readonly name: string;
  readonly world_from_cam: readonly number[];
  readonly lens: readonly [number, number, number, number];
  readonly width: number;
  readonly height: number;
  readonly held_out: boolean;
  readonly thumbnail: Uint8Array;
  readonly photo: string;
  readonly psnr: number | null;
}

export interface SceneInfo {
  readonly type: "SceneInfo";
  readonly title: string;
  readonly up: readonly [number, number, number];
  readonly center: readonly [number, number, number];
  readonly radius: number;
  readonly views: readonly ViewInfo[];
  readonly splats: number;
  readonly points: number;
  readonly editable: boolean;
  readonly rendered: boolean;
  readonly live: boolean;
}

export interface SplatData {
  readonly type: "SplatData";
  readonly count: number;
  readonly antialiased: boolean;
  readonly format: "spz" | "ply";
  readonly data: Uint8Array;
}

export interface PointData {
  readonly type: "PointData";
  readonly count: number;
  readonly positions: Uint8Array;
  readonly colors: Uint8Array;
  readonly confidence: Uint8Array;
}

export interface PhotoData {
  readonly type: "PhotoData";
  readonly name: string;
  readonly data: Uint8Array;
}

export interface Progress {
  readonly type: "Progress";
  readonly stage: string;
  readonly title: string;
  readonly fraction: number;
  readonly message: string;
  readonly seconds: number;
  readonly remaining: number | null;
  readonly finished: boolean;
}

export interface Curve {
  readonly type: "Curve";
  readonly steps: readonly number[];
  readonly loss: readonly number[];
  readonly psnr_steps: readonly number[];
  readonly psnr: readonly number[];
  readonly total: number;
  readonly splats: number;
}

export interface Track {
  readonly type: "Track";
  readonly frame: number;
  readonly seconds: number;
  readonly status: "starting" | "tracking" | "weak" | "lost" | "done";
  readonly message: string;
  readonly world_from_cam: readonly number[] | null;
  readonly lens: readonly [number, number, number, number];
  readonly width: number;
  readonly height: number;
  readonly picture: Uint8Array;
  readonly trajectory: Uint8Array;
  readonly keyframes: Uint8Array;
}

export interface Picture {
  readonly type: "Picture";
  readonly request: number;
  readonly width: number;
  readonly height: number;
  readonly data: Uint8Array;
}

export interface Notice {
  readonly type: "Notice";
  readonly level: "info" | "warning" | "error";
  readonly text: string;
}

export interface CameraRequest {
  readonly type: "CameraRequest";
  readonly request: number;
  readonly world_from_cam: readonly number[];
  readonly lens: readonly [number, number, number, number];
  readonly width: number;
  readonly height: number;
  readonly moving: boolean;
}

export interface Similarity {
  readonly type: "Similarity";
  readonly scale: number;
  readonly rotation: readonly number[];
  readonly translation: readonly [number, number, number];
}

export type FromServer = SceneInfo | SplatData | PointData | PhotoData | Progress | Curve | Track | Picture | Notice;
export type FromPage = CameraRequest | Similarity;
