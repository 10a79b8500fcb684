// The camera: frames of a video as pictures.

// Browsers give it to pages from this computer or by https only.
export const hasCamera = Boolean(navigator.mediaDevices?.getUserMedia);

export class Camera {
  constructor(video) {
    this.video = video;
    this.stream = null;
    this.opening = null;
  }

  get open() {
    return this.stream !== null;
  }

  // However often it is asked for, it is opened once.
  start() {
    this.opening ??= this.begin().finally(() => {
      this.opening = null;
    });
    return this.opening;
  }

  async begin() {
    if (this.open) return;
    const wanted = { video: { facingMode: "environment", width: { ideal: 1280 } } };
    this.stream = await navigator.mediaDevices.getUserMedia(wanted).catch(() => {
      throw new Error("The camera cannot be used. Allow it in the browser's address bar.");
    });
    this.video.srcObject = this.stream;
    await this.video.play();
  }

  stop() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.video.srcObject = null;
    this.stream = null;
  }

  // What it sees now as a JPEG; null where it sees nothing yet.
  frame() {
    const canvas = document.createElement("canvas");
    canvas.width = this.video.videoWidth;
    canvas.height = this.video.videoHeight;
    if (!canvas.width) return Promise.resolve(null);
    canvas.getContext("2d").drawImage(this.video, 0, 0);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
  }
}
