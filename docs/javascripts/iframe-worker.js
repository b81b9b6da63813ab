// A site that is opened from a folder may start no worker: the one of the search runs in a frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.inside = frame.contentWindow;
      this.inside.importScripts = (...urls) => urls.reduce(
        (before, one) => before.then(() => new Promise((done) => {
          const script = this.inside.document.createElement("script");
          Object.assign(script, { src: new URL(one, url).href, onload: done });
          this.inside.document.head.append(script);
        })), Promise.resolve());
      this.inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = this.inside.document.createElement("script");
      Object.assign(script, { src: url, onload: () => this.sendWaiting() });
      this.waiting = [];
      this.inside.document.head.append(script);
    }

    sendWaiting() {
      const waiting = this.waiting;
      this.waiting = null;
      waiting.forEach((data) => this.postMessage(data));
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else this.inside.dispatchEvent(new MessageEvent("message", { data }));
    }

    terminate() {
      this.inside.frameElement.remove();
    }
  };
}
