import AVFoundation
import LightningPrune
import LightningPruneLogic

/// The camera's pictures, upright, one at a time: those that come while one is looked at are left out.
final class CameraFeed: NSObject, AVCaptureVideoDataOutputSampleBufferDelegate, @unchecked Sendable {
  let session = AVCaptureSession()
  private let queue = DispatchQueue(label: "org.lightningprune.digitpad.camera")
  private let look: @Sendable (ColorImage) async -> Void
  private let say: @Sendable (String) -> Void
  // both on the queue alone
  private var isLooking = false
  private var isReady = false

  /// - Parameters:
  ///   - look: what to do with a picture.
  ///   - say: what went wrong, in words.
  init(look: @escaping @Sendable (ColorImage) async -> Void, say: @escaping @Sendable (String) -> Void) {
    self.look = look
    self.say = say
  }

  func start() {
    AVCaptureDevice.requestAccess(for: .video) { isGranted in
      self.queue.async {
        do {
          guard isGranted else { throw ModelError("This screen needs the camera.") }
          if !self.isReady { try self.prepare() }
          self.session.startRunning()
        } catch {
          self.say(error.localizedDescription)
        }
      }
    }
  }

  func stop() {
    queue.async { self.session.stopRunning() }
  }

  private func prepare() throws {
    guard let camera = AVCaptureDevice.default(.builtInWideAngleCamera, for: .video, position: .back) else {
      throw ModelError("This device has no camera.")
    }
    let input = try AVCaptureDeviceInput(device: camera)
    let output = AVCaptureVideoDataOutput()
    output.videoSettings = [kCVPixelBufferPixelFormatTypeKey as String: kCVPixelFormatType_32BGRA]
    output.alwaysDiscardsLateVideoFrames = true
    output.setSampleBufferDelegate(self, queue: queue)
    session.beginConfiguration()
    defer { session.commitConfiguration() }
    session.sessionPreset = .vga640x480
    guard session.canAddInput(input), session.canAddOutput(output) else {
      throw ModelError("The camera is in use by another app.")
    }
    session.addInput(input)
    session.addOutput(output)
    // the pictures come turned upright for a phone that is held upright
    if let connection = output.connection(with: .video), connection.isVideoRotationAngleSupported(90) {
      connection.videoRotationAngle = 90
    }
    isReady = true
  }

  func captureOutput(_ output: AVCaptureOutput, didOutput sampleBuffer: CMSampleBuffer, from connection: AVCaptureConnection) {
    guard !isLooking, let pixelBuffer = CMSampleBufferGetImageBuffer(sampleBuffer) else { return }
    do {
      let image = try ColorImage(pixelBuffer)
      isLooking = true
      Task {
        await look(image)
        queue.async { self.isLooking = false }
      }
    } catch {
      say(error.localizedDescription)
    }
  }
}
