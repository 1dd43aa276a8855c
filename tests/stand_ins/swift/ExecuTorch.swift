// Signatures of ExecuTorch's Swift package 1.4.1 that the runner uses; nothing runs.
public protocol Scalar {}
extension Float: Scalar {}
extension UInt8: Scalar {}
extension Int64: Scalar {}

public protocol ValueConvertible {}

public final class Tensor<T: Scalar>: ValueConvertible {
  public init(_ scalars: [T], shape: [Int]) {}
  public init(bytesNoCopy pointer: UnsafeMutableRawPointer, shape: [Int]) {}
  public func scalars() -> [T] { [] }
}

public final class Value: ValueConvertible {
  public func tensor<T: Scalar>() -> Tensor<T>? { nil }
}

public enum ModuleLoadMode {
  case mmap
}

public final class Module {
  public init(filePath: String, dataFilePaths: [String], loadMode: ModuleLoadMode) {}
  public func load(_ method: String) throws {}
  public func execute(_ method: String, _ inputs: [ValueConvertible]) throws -> [Value] { [] }
}
