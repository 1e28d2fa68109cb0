/* A recording from the microphone as a WAV file: mono, 16 bits, 16 kHz, which every gateway reads without a codec. */

const RATE = 16_000;

/** Begin to record; `stop()` gives the WAV as a Blob. Throws what the browser says of a microphone it may not use. */
export async function record() {
  const sound = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  const recorder = new MediaRecorder(sound);
  const pieces = [];
  recorder.ondataavailable = (event) => pieces.push(event.data);
  const ended = new Promise((resolve) => (recorder.onstop = resolve));
  recorder.start();
  return {
    async stop() {
      recorder.stop();
      await ended;
      for (const track of sound.getTracks()) track.stop();
      return wav(await samples(new Blob(pieces, { type: recorder.mimeType })));
    },
  };
}

/** Decoded, mixed down and resampled by the browser. */
async function samples(recorded) {
  const reader = new OfflineAudioContext(1, 1, RATE);
  const decoded = await reader.decodeAudioData(await recorded.arrayBuffer());
  const context = new OfflineAudioContext(1, Math.max(1, Math.ceil(decoded.duration * RATE)), RATE);
  const source = new AudioBufferSourceNode(context, { buffer: decoded });
  source.connect(context.destination);
  source.start();
  return (await context.startRendering()).getChannelData(0);
}

/** RIFF, PCM: http://soundfile.sapp.org/doc/WaveFormat/ */
function wav(floats) {
  const view = new DataView(new ArrayBuffer(44 + floats.length * 2));
  const text = (at, letters) => [...letters].forEach((letter, index) => view.setUint8(at + index, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + floats.length * 2, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true);
  view.setUint32(28, RATE * 2, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, floats.length * 2, true);
  floats.forEach((each, index) => view.setInt16(44 + index * 2, Math.max(-1, Math.min(1, each)) * 0x7fff, true));
  return new Blob([view], { type: "audio/wav" });
}
