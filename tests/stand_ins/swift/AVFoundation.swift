// Signatures of AVFoundation and CoreMedia that the camera's feed uses; nothing runs.
@_exported import CoreVideo
import Dispatch
@_exported import Foundation

public final class CMSampleBuffer {}
public func CMSampleBufferGetImageBuffer(_ buffer: CMSampleBuffer) -> CVImageBuffer? { nil }
// a CFString, which only there turns into a String with "as"
public let kCVPixelBufferPixelFormatTypeKey = "PixelFormatType"

public struct AVMediaType: Sendable {
  public static let video = AVMediaType()
}

public class AVCaptureInput {}
public class AVCaptureOutput {
  public init() {}
  public func connection(with type: AVMediaType) -> AVCaptureConnection? { nil }
}

public final class AVCaptureConnection {
  public var videoRotationAngle: Double = 0
  public func isVideoRotationAngleSupported(_ angle: Double) -> Bool { true }
}

public final class AVCaptureDevice {
  public enum DeviceType { case builtInWideAngleCamera }
  public enum Position { case back }

  public static func `default`(_ type: DeviceType, for media: AVMediaType?, position: Position) -> AVCaptureDevice? { nil }
  public static func requestAccess(for media: AVMediaType, completionHandler: @escaping @Sendable (Bool) -> Void) {}
}

public final class AVCaptureDeviceInput: AVCaptureInput {
  public init(device: AVCaptureDevice) throws {}
}

public protocol AVCaptureVideoDataOutputSampleBufferDelegate: AnyObject {
  func captureOutput(_ output: AVCaptureOutput, didOutput sampleBuffer: CMSampleBuffer, from connection: AVCaptureConnection)
}

public final class AVCaptureVideoDataOutput: AVCaptureOutput {
  public override init() {}
  public var videoSettings: [String: Any]! = [:]
  public var alwaysDiscardsLateVideoFrames = true
  public func setSampleBufferDelegate(_ delegate: AVCaptureVideoDataOutputSampleBufferDelegate?, queue: DispatchQueue?) {}
}

public final class AVCaptureSession {
  public enum Preset { case vga640x480 }

  public var sessionPreset = Preset.vga640x480
  public init() {}
  public func startRunning() {}
  public func stopRunning() {}
  public func beginConfiguration() {}
  public func commitConfiguration() {}
  public func canAddInput(_ input: AVCaptureInput) -> Bool { true }
  public func canAddOutput(_ output: AVCaptureOutput) -> Bool { true }
  public func addInput(_ input: AVCaptureInput) {}
  public func addOutput(_ output: AVCaptureOutput) {}
}
