// How good a picture may be while things move: what this machine can draw often enough, found out frame by frame.

export interface Quality {
  /** Pixels, as a share of the screen's in each direction. */
  readonly detail: number;
  /** Splats, as a share of all: fewer are merged ones. */
  readonly share: number;
}

/** Best first. Half the pixels look better than a quarter of the splats, and are worth as much time or more. */
const LADDER = [
  { detail: 1, share: 1 }, { detail: 0.75, share: 1 }, { detail: 0.5, share: 1 }, { detail: 0.5, share: 1 / 4 }, { detail: 0.5, share: 1 / 16 },
] as const satisfies readonly Quality[];
export const FULL: Quality = LADDER[0];
const FIRST_LEVEL = LADDER.findIndex(({ share }) => share < 1);

const SLOW = 0.05; // seconds a frame
const QUICK = 0.024; // a screen of 60 pictures a second shows no more than one in 0.017
const HEAVY = 0.2; // seconds a full picture at rest, from which movement begins with fewer splats
const LAG = 3; // frames that are asked for before the first of them is done
const KNOWN = 5; // frames
const PATIENCE = 0.7; // seconds of quick frames before more is tried
const MOST_PATIENCE = 20;

export class Pace {
  private step = 0;
  private seconds = 0;
  /** Seconds of quick frames in a row. */
  private quick = 0;
  private patience = PATIENCE;
  /** The last change was to something better. */
  private climbed = false;
  /** So many frames yet show what was before the change, or what the change itself costs. */
  private unclear = 0;
  /** Frames that have said something. */
  private known = 0;

  /** Of the next picture while things move: what went well the last time. */
  get quality(): Quality {
    return LADDER[this.step] ?? FULL;
  }

  /** A full picture at rest took so long: a guess for the first movement. */
  full(seconds: number): void {
    if (this.known < KNOWN && seconds > HEAVY && this.step < FIRST_LEVEL) this.go(FIRST_LEVEL);
  }

  /** The last frame took so long, while things moved. */
  took(seconds: number): void {
    if (this.unclear > 0) {
      this.unclear -= 1;
      return;
    }
    this.known += 1;
    this.seconds = this.seconds === 0 ? seconds : this.seconds * 0.7 + seconds * 0.3;
    this.quick = this.seconds < QUICK ? this.quick + seconds : 0;
    if (this.seconds > SLOW && this.step < LADDER.length - 1) this.down();
    else if (this.quick > this.patience && this.step > 0) this.up();
  }

  private down(): void {
    const steps = this.seconds > 4 * SLOW ? 3 : this.seconds > 2 * SLOW ? 2 : 1;
    // What was tried in vain is tried less often: a picture that changes to and fro is worse than a coarse one.
    if (this.climbed) this.patience = Math.min(2 * this.patience, MOST_PATIENCE);
    this.climbed = false;
    this.go(Math.min(this.step + steps, LADDER.length - 1));
  }

  private up(): void {
    if (this.climbed) this.patience = PATIENCE; // the last one went well
    this.climbed = true;
    this.go(this.step - 1);
  }

  private go(step: number): void {
    this.step = step;
    this.seconds = this.quick = 0;
    this.unclear = LAG;
  }
}
