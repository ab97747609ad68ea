"use strict";

// One clock drives all videos. It runs only while every video in view is ready, and each video is held to it: a small
// lag is worked off by playing a little faster or slower, a large one by seeking.

const videos = [];  // Those that have a file to play.
const [player, button, scrubber, time, rate] = ["player", "play", "scrubber", "time", "rate"].map((id) =>
  document.getElementById(id));
const inView = new Set();
const clock = { position: 0, playing: false, tickedAt: 0 };
const CATCH_UP = 4;     // A lag shrinks by this share of itself every second.
const SHORT = 1;        // Videos of fewer seconds are over before one has looked: they begin at a quarter of the pace.
const SEEK_FRAMES = 3;  // A lag of more frames than this is not worked off but jumped over.
let frame = 1 / 24;     // Seconds.
let duration = 0;

const view = new IntersectionObserver((entries) => {
  for (const entry of entries) inView[entry.isIntersecting ? "add" : "delete"](entry.target);
});

function setPlaying(playing) {
  clock.playing = playing;
  button.textContent = playing ? "Pause" : "Play";
}

// Where a video belongs: the middle of a frame when it stands, and on its last frame when others are longer.
function placeOf(video) {
  const middle = (Math.floor(clock.position / frame + 1e-6) + 0.5) * frame;
  return Math.min(clock.playing ? clock.position : middle, video.duration - frame / 2);
}

function hold(video) {
  if (video.readyState === HTMLMediaElement.HAVE_NOTHING) return;
  const place = placeOf(video);
  const running = clock.playing && inView.has(video) && place === clock.position;
  if (running === video.paused) {
    if (running) video.play().catch((error) => error.name === "NotAllowedError" && setPlaying(false));
    else video.pause();
  }
  if (video.seeking || !inView.has(video)) return;
  const lag = place - video.currentTime;
  if (Math.abs(lag) > (running ? SEEK_FRAMES * frame : frame / 4)) video.currentTime = place;
  const catchUp = Math.abs(lag) < frame / 4 ? 1 : Math.min(2, Math.max(0.5, 1 + CATCH_UP * lag));
  video.playbackRate = Number(rate.value) * catchUp;
}

function isReady(video) {
  return video.error || (!video.seeking && video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA);
}

function tick(now) {
  const seconds = (now - clock.tickedAt) / 1000;
  clock.tickedAt = now;
  const ready = [...inView].every(isReady);
  if (clock.playing && ready) clock.position = (clock.position + seconds * Number(rate.value)) % duration;
  videos.forEach(hold);
  show();
  requestAnimationFrame(tick);
}

function show() {
  const index = Math.floor(clock.position / frame + 1e-6);
  scrubber.value = index;
  const text = `${clock.position.toFixed(2)} s, frame ${index + 1} of ${Math.round(duration / frame)}`;
  if (time.textContent !== text) {
    time.textContent = text;
    scrubber.setAttribute("aria-valuetext", text);
  }
}

// Seconds that a frame lasts, and the longest video.
function setLength(frameSeconds, seconds) {
  [frame, duration] = [frameSeconds, seconds];
  if (clock.position >= duration) clock.position = duration - frame;
  scrubber.max = Math.round(duration / frame) - 1;
}

function stand(position) {
  setPlaying(false);
  clock.position = Math.min(Math.max(position, 0), duration - frame);
}

// To be called once, when the length is known.
function startPlayer() {
  if (duration < SHORT) rate.value = "0.25";
  player.hidden = false;
  button.addEventListener("click", () => setPlaying(!clock.playing));
  scrubber.addEventListener("input", () => stand(Number(scrubber.value) * frame));

  // report.html#t=0.5 opens the page standing at half a second.
  const start = /^#t=([\d.]+)$/.exec(location.hash);
  if (start) stand(Number(start[1]));
  setPlaying(!start && !matchMedia("(prefers-reduced-motion: reduce)").matches);
  requestAnimationFrame((now) => {
    clock.tickedAt = now;
    tick(now);
  });
}
