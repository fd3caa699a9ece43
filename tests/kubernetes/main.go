// A node without containers: the kubelet's port and the streaming of a container runtime, both by
// Kubernetes' own code, for pods that are sockets of this machine and logs that are files.
//
// Licensed under the Apache License, Version 2.0, as the rest of meshnb.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-client/pkg/logs"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	"k8s.io/kubernetes/pkg/kubelet/server"
)

// node is what a kubelet knows: its pods, as the API server has them, and where they answer.
type node struct {
	server.HostInterface // what is not asked here is nil
	client               kubernetes.Interface
	folder               string
	streams              streaming.Server
}

func (n *node) GetPodByName(namespace, name string) (*v1.Pod, bool) {
	pod, err := n.client.CoreV1().Pods(namespace).Get(context.Background(), name, metav1.GetOptions{})
	return pod, err == nil
}

func (n *node) GetPortForward(
	_ context.Context, name, namespace string, _ types.UID, options portforward.V4Options,
) (*url.URL, error) {
	response, err := n.streams.GetPortForward(&runtimeapi.PortForwardRequest{
		PodSandboxId: namespace + "/" + name, Port: options.Ports,
	})
	if err != nil {
		return nil, err
	}
	return url.Parse(response.Url)
}

func (n *node) GetKubeletContainerLogs(
	ctx context.Context, fullName, container string, options *v1.PodLogOptions, out, err io.Writer,
) error {
	name, namespace, failure := kubecontainer.ParsePodFullName(fullName)
	if failure != nil {
		return failure
	}
	pod, found := n.GetPodByName(namespace, name)
	if !found {
		return fmt.Errorf("pod %q cannot be found - no logs available", name)
	}
	run, failure := runOf(pod, container, options.Previous)
	if failure != nil {
		return failure
	}
	// From here on the kubelet has said 200: what fails now is a line in the text.
	if _, failure := out.Write(nil); failure != nil {
		return failure
	}
	file := filepath.Join(n.folder, "logs", namespace, name, container+".log")
	if options.Previous {
		file = filepath.Join(n.folder, "logs", namespace, name, container+".previous.log")
	}
	if _, missing := os.Stat(file); missing != nil {
		return fmt.Errorf("unable to retrieve container logs for %s", run)
	}
	cut := &logs.LogOptions{
		TailLines: options.TailLines, LimitBytes: options.LimitBytes, Timestamp: options.Timestamps,
	}
	if options.SinceSeconds != nil {
		cut.Since = time.Now().Add(-time.Duration(*options.SinceSeconds) * time.Second)
	}
	return logs.ReadLogs(ctx, file, run, cut, nil, out, err)
}

// runOf returns which run of a container has the log, or why there is none yet.
func runOf(pod *v1.Pod, container string, previous bool) (string, error) {
	states := append(pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses...)
	for _, one := range states {
		last := one.LastTerminationState.Terminated
		switch {
		case one.Name != container:
			continue
		case previous && (last == nil || last.ContainerID == ""):
			return "", fmt.Errorf(
				"previous terminated container %q in pod %q not found", container, pod.Name)
		case previous:
			return last.ContainerID, nil
		case one.State.Running != nil:
			return one.ContainerID, nil
		case one.State.Terminated != nil:
			return one.State.Terminated.ContainerID, nil
		case last != nil:
			return last.ContainerID, nil
		case one.State.Waiting != nil:
			return "", fmt.Errorf("container %q in pod %q is waiting to start: %s",
				container, pod.Name, one.State.Waiting.Reason)
		}
	}
	return "", fmt.Errorf("container %q in pod %q is not available", container, pod.Name)
}

// runtime is what containerd does: it connects within the pod, here at the pod's own address.
type runtime struct {
	folder string
}

func (r *runtime) Exec(context.Context, string, []string, io.Reader, io.WriteCloser, io.WriteCloser,
	bool, <-chan remotecommand.TerminalSize) error {
	return errors.New("nothing runs here")
}

func (r *runtime) Attach(context.Context, string, io.Reader, io.WriteCloser, io.WriteCloser, bool,
	<-chan remotecommand.TerminalSize) error {
	return errors.New("nothing runs here")
}

func (r *runtime) PortForward(
	ctx context.Context, sandbox string, port int32, stream io.ReadWriteCloser,
) error {
	address, err := r.address(sandbox)
	if err != nil {
		return err
	}
	var dialer net.Dialer
	connection, err := dialer.DialContext(ctx, "tcp4", net.JoinHostPort(address, strconv.Itoa(int(port))))
	if err != nil {
		return fmt.Errorf("failed to execute portforward in network namespace %q: failed to connect "+
			"to localhost:%d inside namespace %q, IPv4: %v IPv6 dial tcp6: address localhost: no "+
			"suitable address found", sandbox, port, sandbox, err)
	}
	defer connection.Close()
	ended := make(chan error, 2)
	for _, way := range [][2]io.ReadWriter{{stream, connection}, {connection, stream}} {
		go func() {
			_, err := io.Copy(way[0], way[1])
			ended <- err
		}()
	}
	err = <-ended
	// containerd gives the other direction one second more.
	select {
	case <-ended:
	case <-time.After(time.Second):
	}
	return err
}

func (r *runtime) address(sandbox string) (string, error) {
	content, err := os.ReadFile(filepath.Join(r.folder, "addresses.json"))
	if err != nil {
		return "", err
	}
	var addresses map[string]string
	if err := json.Unmarshal(content, &addresses); err != nil {
		return "", err
	}
	if address, found := addresses[sandbox]; found {
		return address, nil
	}
	return "", fmt.Errorf("failed to find sandbox %q", sandbox)
}

func main() {
	folder := flag.String("folder", ".", "where kubeconfig, addresses.json, logs and pki are")
	address := flag.String("address", "127.0.0.1:10250", "where the kubelet listens")
	flag.Parse()
	if err := serve(*folder, *address); err != nil {
		log.Fatal(err)
	}
}

func serve(folder, address string) error {
	access, err := clientcmd.BuildConfigFromFlags("", filepath.Join(folder, "kubeconfig"))
	if err != nil {
		return err
	}
	access.QPS = -1
	client, err := kubernetes.NewForConfig(access)
	if err != nil {
		return err
	}
	config := streaming.DefaultConfig
	config.Addr = "127.0.0.1:0"
	config.BaseURL = &url.URL{Scheme: "http", Path: "/"}
	streams, err := streaming.NewServer(config, &runtime{folder})
	if err != nil {
		return err
	}
	go func() { log.Fatal(streams.Start(true)) }()
	certificate, err := tls.LoadX509KeyPair(
		filepath.Join(folder, "pki", "node.pem"), filepath.Join(folder, "pki", "node.pem"))
	if err != nil {
		return err
	}
	authority, err := os.ReadFile(filepath.Join(folder, "pki", "ca.pem"))
	if err != nil {
		return err
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(authority)
	kubelet := server.NewServer(context.Background(),
		&node{client: client, folder: folder, streams: streams}, nil, nil, nil, nil,
		&kubeletconfig.KubeletConfiguration{EnableDebuggingHandlers: true})
	listening := &http.Server{Addr: address, Handler: &kubelet, TLSConfig: &tls.Config{
		Certificates: []tls.Certificate{certificate},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    clients,
	}}
	return listening.ListenAndServeTLS("", "")
}
