// How splats become a picture. First pass: every splat once, a texel each, to its place, axes and colour on the screen
// (elliptical weighted average, Zwicker 2001; Kerbl 2023, eq. 5; the same rules as our rasterizer). Second pass: a
// triangle each, in order, just as large as the splat is visible: one corner less than a square has, and no diagonal.
import { ROW } from "./splatpack";

export const FULL_SCREEN = `
void main() {
  gl_Position = vec4(gl_VertexID == 1 ? 3.0 : -1.0, gl_VertexID == 2 ? 3.0 : -1.0, 0.0, 1.0);
}`;

const PLACE = `
ivec2 texel(int index) { return ivec2(index & ${ROW - 1}, index / ${ROW}); }`;

/** ``bands`` is the degree of the file, ``degree`` what is wanted of it. Both are no constants: a file of another degree would wait
for a compiler. */
export const PROJECT = `
precision highp float;
precision highp int;
precision highp usampler2D;
uniform usampler2D places, shapes, sh;
uniform mat4 view, projection;
uniform vec2 size;
uniform vec3 eye;
uniform int count, bands, degree;
uniform bool antialiased, turned;
layout(location = 0) out uvec4 clip;
layout(location = 1) out uvec4 rest;
const float LOW_PASS = 0.3, MIN_ALPHA = 1.0 / 255.0, MARGIN = 1.3, LARGEST = 16384.0;
${PLACE}

vec2 signed16(uint word) { return vec2(float(int(word << 16) >> 16), float(int(word) >> 16)) / 32767.0; }

uint words[12];
vec3 term(int k) {
  vec3 rgb;
  for (int c = 0; c < 3; c++) {
    int at = 3 * k + c;
    rgb[c] = float((words[at >> 2] >> uint(8 * (at & 3))) & 255u);
  }
  return (rgb - 128.0) / 128.0;
}

vec3 shade(int index, vec3 dc, vec3 center) {
  vec3 rgb = 0.5 + 0.28209479 * (dc - 0.5) / 0.15;
  if (degree == 0) return max(rgb, 0.0);
  for (int j = 0; j < 3; j++) {
    if (j == degree) break;
    uvec4 four = texelFetch(sh, texel(index * bands + j), 0);
    for (int k = 0; k < 4; k++) words[4 * j + k] = four[k];
  }
  vec3 d = normalize(center - eye) * (turned ? vec3(1.0, -1.0, -1.0) : vec3(1.0));
  float x = d.x, y = d.y, z = d.z;
  rgb += 0.48860251 * (z * term(1) - y * term(0) - x * term(2));
  if (degree == 1) return max(rgb, 0.0);
  float xx = x * x, yy = y * y, zz = z * z;
  rgb += 1.09254843 * (x * y * term(3) - y * z * term(4) - x * z * term(6))
    + 0.31539157 * (2.0 * zz - xx - yy) * term(5) + 0.54627422 * (xx - yy) * term(7);
  if (degree > 2) rgb += 2.89061144 * x * y * z * term(9) + 1.44530572 * z * (xx - yy) * term(13)
    + 0.37317633 * z * (2.0 * zz - 3.0 * xx - 3.0 * yy) * term(11)
    - 0.59004359 * (y * (3.0 * xx - yy) * term(8) + x * (xx - 3.0 * yy) * term(14))
    - 0.45704580 * (4.0 * zz - xx - yy) * (y * term(10) + x * term(12));
  return max(rgb, 0.0);
}

mat3 axes(uvec4 shape) {
  vec4 q = vec4(signed16(shape.x), signed16(shape.y));
  vec3 s = exp(vec3(float(shape.z & 65535u), float(shape.z >> 16), float(shape.w)) / 2048.0 - 20.0);
  vec3 a = vec3(1.0 - 2.0 * (q.y * q.y + q.z * q.z), 2.0 * (q.x * q.y + q.w * q.z), 2.0 * (q.x * q.z - q.w * q.y));
  vec3 b = vec3(2.0 * (q.x * q.y - q.w * q.z), 1.0 - 2.0 * (q.x * q.x + q.z * q.z), 2.0 * (q.y * q.z + q.w * q.x));
  vec3 c = vec3(2.0 * (q.x * q.z + q.w * q.y), 2.0 * (q.y * q.z - q.w * q.x), 1.0 - 2.0 * (q.x * q.x + q.y * q.y));
  return mat3(a * s.x, b * s.y, c * s.z);
}

void main() {
  rest = uvec4(0);
  int index = int(gl_FragCoord.x) + ${ROW} * int(gl_FragCoord.y);
  if (index >= count) return;
  uvec4 place = texelFetch(places, texel(index), 0);
  vec3 center = uintBitsToFloat(place.xyz);
  vec4 color = vec4(place.w & 255u, (place.w >> 8) & 255u, (place.w >> 16) & 255u, place.w >> 24) / 255.0;
  vec4 local = view * vec4(center, 1.0);
  if (local.z >= 0.0 || color.a < MIN_ALPHA) return;

  // Far outside the picture the linearised projection explodes, so it is taken at its margin there.
  vec2 scale = vec2(projection[0][0], projection[1][1]), shift = projection[2].xy;
  vec2 slope = (clamp(-scale * local.xy / local.z - shift, -MARGIN, MARGIN) + shift) / scale;
  mat3 across = transpose(mat3(view) * axes(texelFetch(shapes, texel(index), 0)));
  vec2 focal = 0.5 * size * scale / -local.z;
  vec3 right = focal.x * (across[0] + slope.x * across[2]), up = focal.y * (across[1] + slope.y * across[2]);
  vec3 normal = cross(right, up);
  float sharp = dot(normal, normal), xx = dot(right, right), xy = dot(right, up), yy = dot(up, up);
  float det = sharp + LOW_PASS * (xx + yy) + LOW_PASS * LOW_PASS;
  xx += LOW_PASS;
  yy += LOW_PASS;
  if (antialiased) color.a *= sqrt(sharp / det);
  if (color.a < MIN_ALPHA) return;
  vec4 at = projection * local;
  vec2 reach = sqrt(2.0 * log(color.a / MIN_ALPHA) * vec2(xx, yy)) * 2.0 / size;
  if (any(greaterThan(abs(at.xy), at.w * (1.0 + reach)))) return;

  float middle = 0.5 * (xx + yy), longer = middle + length(vec2(0.5 * (xx - yy), xy));
  vec2 axis = abs(xy) < 1e-6 * middle ? (xx >= yy ? vec2(1.0, 0.0) : vec2(0.0, 1.0)) : normalize(vec2(xy, longer - xx));
  vec2 major = axis * min(sqrt(longer), LARGEST), minor = vec2(-axis.y, axis.x) * min(sqrt(det / longer), LARGEST);
  color.rgb = shade(index, color.rgb, center);
  clip = floatBitsToUint(at);
  rest = uvec4(packHalf2x16(major), packHalf2x16(minor), packHalf2x16(color.rg), packHalf2x16(color.ba));
}`;

export const VERTEX = `
precision highp float;
precision highp int;
precision highp usampler2D;
uniform usampler2D order, clips, rests;
uniform vec2 size;
uniform int count, batch;
out vec2 place;
flat out vec4 color;
${PLACE}
void main() {
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0);
  int rank = gl_InstanceID * batch + gl_VertexID / 3;
  if (rank >= count) return;
  ivec2 at = texel(int(texelFetch(order, texel(rank), 0).x));
  uvec4 rest = texelFetch(rests, at, 0);
  if (rest.w == 0u) return;
  color = vec4(unpackHalf2x16(rest.z), unpackHalf2x16(rest.w));
  int corner = gl_VertexID % 3;
  // Around the circle of 1 / 255.
  place = vec2(corner == 2 ? 0.0 : 1.7320508 * float(2 * corner - 1), corner == 2 ? 2.0 : -1.0) * sqrt(2.0 * max(log(color.a * 255.0), 0.0));
  vec4 center = uintBitsToFloat(texelFetch(clips, at, 0));
  vec2 pixels = unpackHalf2x16(rest.x) * place.x + unpackHalf2x16(rest.y) * place.y;
  gl_Position = center + vec4(pixels * 2.0 / size * center.w, 0.0, 0.0);
  place *= 0.84932180; // exp(-r^2 / 2) as a power of two
}`;

export const FRAGMENT = `
precision highp float;
in vec2 place;
flat in vec4 color;
out vec4 seen;
void main() {
  float alpha = min(color.a * exp2(-dot(place, place)), 0.999);
  if (alpha < 1.0 / 255.0) discard;
  seen = vec4(color.rgb * alpha, alpha);
}`;
